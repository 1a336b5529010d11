"""The trained model as others read it: Hugging Face safetensors, tokenizer, chat template and model card; LoRA's
adapters, besides, in peft's format.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from jinja2 import Template
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray import __version__
from orpo_ray.atomic import next_folder
from orpo_ray.config import TrainConfig
from orpo_ray.data.named_templates import resolve_template
from orpo_ray.data.templates import Renderer, write_text_rule
from orpo_ray.modeling.loading import hub_id, locate
from orpo_ray.modeling.lora import write_adapter
from orpo_ray.modeling.reward import StateDict
from orpo_ray.parsing import read_object
from orpo_ray.storage.run_folder import STEP_OF_MODEL, KeptModel
from orpo_ray.training.loop import Line

_CARD = Template(
    """---
library_name: transformers
tags: [orpo_ray, {{ config.objective.name }}]
{%- if base_on_hub %}
base_model: {{ base_on_hub }}
{%- endif %}
---
# {{ config.name }}

{{ base }}{% if config.model.init == "random" %} (architecture only, random weights){% endif %}
trained with {{ config.objective.name }} by orpo_ray {{ version }}.

| setting | value |
|---|---|
| base model | `{{ base }}` ({{ config.model.init }}, {{ config.model.dtype }}) |
{%- for source in config.data.train_sources %}
| data | `{{ source.source }}`, split {{ source.split }}{% if source.weight %}, weight {{ source.weight }}{% endif %} |
{%- endfor %}
| objective | {{ objective }} |
{%- if lora %}
| LoRA, merged here | {{ lora }} |
{%- endif %}
| learning rate | {{ config.optim.lr }}, {{ config.optim.schedule }}, warm-up {{ config.optim.warmup_steps }} |
{%- if config.rollouts %}
| prompts in a step | {{ config.train.global_batch_size }}, {{ config.rollouts.samples }} response(s) to each |
| longest text | {{ config.data.max_length }} tokens, response {{ config.rollouts.max_tokens }} |
{%- else %}
| pairs in a step | {{ config.train.global_batch_size }} |
| longest text | {{ config.data.max_length }} tokens, prompt {{ config.data.max_prompt_length }} |
{%- endif %}
| chat template | {{ template }} |
| seed | {{ config.seed }} |
| weights of step | {{ step }}{% if total_steps %} of {{ total_steps }}{% endif %} ({{ why }}) |
{% if evaluation %}
Held-out {{ 'prompts' if config.rollouts else 'pairs' }} at that step:

| metric | value |
|---|---|
{%- for name, value in evaluation.items() %}
| {{ name }} | {{ "%.4f" | format(value) }} |
{%- endfor %}
{% else %}
The held-out {{ 'prompts' if config.rollouts else 'pairs' }} were not evaluated at that step.
{% endif %}"""
)


def export_model(
    target: Path,
    model: PreTrainedModel,
    weights: StateDict,
    tokenizer: Tokenizer,
    config: TrainConfig,
    evaluation: Line,
    total_steps: int | None,
    why: str | None = None,
) -> None:
    """Write `target` whole or not at all.

    `weights`: of the plain network, adapters merged. `evaluation`: the evaluation line of the weights' step, or that
    step alone. `total_steps`: None where they are not known. `why` these are kept; default: as the run's best.
    """
    why = why or config.train.best
    with next_folder(target) as new:
        model.save_pretrained(new, state_dict=weights, safe_serialization=True)
        _save_manner(new, tokenizer, config)
        _save_ends(new, tokenizer, config)
        (new / "README.md").write_text(_card(config, evaluation, total_steps, why), encoding="utf-8")
        kept = KeptModel(evaluation["step"], why)
        (new / STEP_OF_MODEL).write_text(json.dumps(kept._asdict()) + "\n", encoding="utf-8")


def _card(config: TrainConfig, evaluation: Line, total_steps: int | None, why: str) -> str:
    config = TrainConfig.model_validate(config.for_a_file())  # without secrets: cards are published
    settings = config.objective.model_dump(by_alias=True, exclude={"name"}, exclude_none=True)
    described = [f"{'λ' if name == 'lambda' else name} = {value}" for name, value in settings.items()]
    name, template, lora = config.model.name_or_path, config.data.chat_template, config.model.lora
    adapted = lora and ("all-linear" if lora.target_modules == "all-linear" else ", ".join(lora.target_modules))
    card: str = _CARD.render(
        config=config,
        version=__version__,
        objective=", ".join([config.objective.name, *described]),
        base=name if config.model.revision is None else f"{name}@{config.model.revision}",
        base_on_hub=hub_id(name)[0] if hub_id(name)[0].count("/") == 1 and not Path(name).exists() else None,
        template=f"`{template.splitlines()[0][:60]}`" if template else "the tokenizer's own, none for plain text",
        lora=lora and f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {adapted}",
        step=evaluation["step"],
        total_steps=total_steps,
        why=why,
        evaluation={name: value for name, value in evaluation.items() if name != "step"},
    )
    return card


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
