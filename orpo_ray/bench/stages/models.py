"""Models with random weights, and the evaluation that they take part in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from orpo_ray.config import EvaluationConfig, ModelConfig
from orpo_ray.config.evaluation import PromptsConfig, SamplingConfig, ScoringConfig
from orpo_ray.data.templates import write_text_rule
from orpo_ray.evaluation.plan import EvaluationPlan, make_plan
from orpo_ray.modeling.loading import load_config, load_tokenizer


def random_policy(shape: str, tokenizer: str, folder: Path) -> Path:
    return _save(AutoModelForCausalLM, shape, tokenizer, folder / "policy")


def random_judge(shape: str, tokenizer: str, folder: Path) -> Path:
    judge = _save(AutoModelForSequenceClassification, shape, tokenizer, folder / "judge", num_labels=1)
    write_text_rule(judge, through_template=False)  # spoken to as one that was trained here
    return judge


def _save(auto: Any, shape: str, tokenizer: str, folder: Path, **changes: Any) -> Path:
    """A model of the shape that the folder `shape` describes, float32, as `orpo-ray evaluate` takes it."""
    settings = ModelConfig(name_or_path=shape, tokenizer=tokenizer)
    config = load_config(settings)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer(settings).save_pretrained(folder)
    return folder


def plan_evaluation(
    name: str, policy: Path, judge: Path, prompts: PromptsConfig, sampling: SamplingConfig,
    scoring: ScoringConfig, folder: Path,
) -> EvaluationPlan:  # fmt: skip
    """An evaluation of one policy by one judge whose pieces go to `folder/name`."""
    return make_plan(
        EvaluationConfig.model_validate({
            "name": name, "models": {"policy": str(policy)}, "reward_models": {"judge": str(judge)},
            "prompts": prompts, "sampling": sampling, "scoring": scoring, "storage": {"path": str(folder)},
        })
    )  # fmt: skip
