"""The trained model as others read it: Hugging Face safetensors, tokenizer, chat template and model card; LoRA's
adapters, besides, in peft's format.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.atomic import next_folder
from orpo_ray.config import TrainConfig
from orpo_ray.data.named_templates import resolve_template
from orpo_ray.data.templates import Renderer, write_text_rule
from orpo_ray.modeling.loading import locate
from orpo_ray.modeling.lora import write_adapter
from orpo_ray.modeling.reward import StateDict
from orpo_ray.parsing import read_object
from orpo_ray.storage.run_folder import STEP_OF_MODEL, KeptModel
from orpo_ray.training.card import card
from orpo_ray.training.loop import Line


def export_model(
    target: Path,
    model: PreTrainedModel,
    weights: StateDict,
    tokenizer: Tokenizer,
    config: TrainConfig,
    evaluation: Line,
    total_steps: int | None,
    why: str | None = None,
    hardware: str | None = None,
) -> None:
    """Write `target` whole or not at all.

    `weights`: of the plain network, adapters merged. `evaluation`: the evaluation line of the weights' step, or that
    step alone. `total_steps`: None where they are not known. `why` these are kept; default: as the run's best.
    `hardware` that they were trained on, where that is known: of `hardware_of`.
    """
    why = why or config.train.best
    with next_folder(target) as new:
        model.save_pretrained(new, state_dict=weights, safe_serialization=True)
        _save_manner(new, tokenizer, config)
        _save_ends(new, tokenizer, config)
        text = card(config, tokenizer, evaluation, total_steps, why, hardware)
        (new / "README.md").write_text(text, encoding="utf-8")
        kept = KeptModel(evaluation["step"], why)
        (new / STEP_OF_MODEL).write_text(json.dumps(kept._asdict()) + "\n", encoding="utf-8")


def export_adapter(
    target: Path,
    model: PreTrainedModel,
    weights: StateDict,
    exported: StateDict,
    tokenizer: Tokenizer,
    config: TrainConfig,
) -> None:
    """Write `target`, the adapters in peft's format, whole or not at all.

    `weights`: the state dict of `model`, adapters and all; `exported`: what of it went into the merged model.
    """
    with next_folder(target) as new:
        write_adapter(new, model, weights, exported, *locate(config.model.name_or_path, config.model.revision))
        _save_manner(new, tokenizer, config)


def _save_manner(folder: Path, tokenizer: Tokenizer, config: TrainConfig) -> None:
    """The model must be spoken to as it was trained: tokenizer and template travel with it."""
    tokenizer = copy.copy(tokenizer)  # the caller's stays as it is
    tokenizer.chat_template = resolve_template(config.data.chat_template, tokenizer, config.data.date)
    tokenizer.save_pretrained(folder)
    write_text_rule(folder, config.data.chat_template is not None)


def _save_ends(folder: Path, tokenizer: Tokenizer, config: TrainConfig) -> None:
    """A server stops at the EOS of `generation_config.json`: what the template ends an answer with must be one."""
    file = folder / "generation_config.json"
    ends = Renderer(tokenizer, config.data.chat_template, date=config.data.date).end_ids
    if not ends or not file.is_file():
        return
    settings = read_object(file)
    held = settings.get("eos_token_id")
    known = held if isinstance(held, list) else [tokenizer.eos_token_id if held is None else held]
    if any(end not in known for end in ends):
        settings["eos_token_id"] = [*dict.fromkeys([*known, *ends])]
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
