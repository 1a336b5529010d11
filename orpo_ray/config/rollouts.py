"""Rollouts: what the policy in training writes, who scores it, and what they need of the rest of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from orpo_ray.config.objectives import KL_STEP, PolicyGradientSection
from orpo_ray.config.paths import Place
from orpo_ray.config.section import Count, CountOrAuto, Integer, Number, PathSection, RunName, Section, WholeOrAuto

if TYPE_CHECKING:
    from orpo_ray.config.schema import TrainConfig

VLLM_TEMPERATURES = (0.01, 2.0)
"""The lowest, instead of which vLLM draws at it and says so in its log alone, and the highest that it draws at."""


class RewardSourceConfig(PathSection):
    """One of those that score responses. Where only its path is given, the text alone stands for it."""

    path: Place
    """Run folder, folder or Hub id of a reward model of any family; `toy`, the embedded world's ground truth; or
    `FILE.py:FUNCTION`, which is called with lists of prompts and responses, as text, and returns a number for each."""
    weight: Number = 1.0
    """The score of a response is the weighted sum of all rewards."""


class RolloutsConfig(Section):
    """What the policy answers and how that is scored, between updates."""

    rewards: Annotated[dict[RunName, RewardSourceConfig], Field(min_length=1)]
    """Label to reward model or function, or to a mapping {path, weight}."""
    prompts: Count = 64
    """Prompts answered at a time by one policy; a multiple of `train.global_batch_size`, the prompts of one update."""
    samples: Annotated[Integer, Field(ge=1, le=1024)] = 1
    """Responses to each prompt."""
    epochs: Count | None = None
    """Times that each batch of rollouts is trained on; default: 4 of `ppo`, 1 of others."""
    max_tokens: Count = 128
    """Of a response. One that is cut there has no end, and is scored without one."""
    temperature: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """Of what is drawn and of the policy's log-probs alike."""
    clip_scores: Annotated[Number, Field(gt=0)] | None = None
    """Scores are held within this of 0; null: as they are."""
    cut_penalty: Annotated[Number, Field(ge=0)] = 0.0
    """Subtracted from the score of a response that `max_tokens` cut."""
    importance_cap: Annotated[Number, Field(ge=1)] | None = None
    """Weigh each token by the trainer's probability over the engine's, at most this (truncated importance sampling);
    null: do not."""
    eval_prompts: Count = 256
    """Held-out prompts, the first so many, that each evaluation answers once."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """`transformers`: its own `generate`, slower, for models that vLLM does not compute (here)."""
    gpus: WholeOrAuto = "auto"
    """That engines and scorer have beside training's; `auto`: those that training leaves free, in a sweep the trial's
    part of them; 0: engines and scorer take turns with training."""
    engines: CountOrAuto = "auto"
    """Engines that write at a time; `auto`: one on each of `gpus` but the scorer's, or one that takes turns with
    training."""
    gpu_memory: Annotated[Number, Field(gt=0, le=1)] = 0.4
    """Share of a GPU's memory that an engine takes."""
    sleep: bool = True
    """Have engines that take turns with training on its GPU let go of the memory there while others are at work
    (vLLM's sleep mode at level 2: cache and weights, which are loaded anew before they write)."""

    @model_validator(mode="after")
    def _the_engine_draws_at_the_temperature(self) -> RolloutsConfig:
        least, most = VLLM_TEMPERATURES
        if self.engine == "vllm" and not least <= self.temperature <= most:
            raise ValueError(
                f"temperature ({self.temperature:g}): vLLM draws at {least:g} to {most:g}; engine=transformers at any"
            )
        return self


def require_suited(run: TrainConfig) -> None:
    """Raises `ValueError`, naming the key, where rollouts and an objective that trains on them do not come together, or
    do not suit the rest of `run`."""
    objective, rollouts = run.objective, run.rollouts
    if rollouts is None:
        if objective.rolls_out:
            raise ValueError(f"rollouts: {objective.name} trains on rollouts; say at least who scores them (rewards)")
        run.data.require_room()
        return
    if not objective.rolls_out:
        raise ValueError(f"rollouts: {objective.name} trains on the responses of data.train; leave rollouts out")
    if rollouts.prompts % run.train.global_batch_size:
        raise ValueError(
            f"rollouts.prompts ({rollouts.prompts}) should be a multiple of train.global_batch_size "
            f"({run.train.global_batch_size}), the prompts of one update"
        )
    if rollouts.max_tokens >= run.data.max_length:
        raise ValueError(
            f"rollouts.max_tokens ({rollouts.max_tokens}) must be below data.max_length ({run.data.max_length}), "
            "or no prompt fits"
        )
    if rollouts.importance_cap is not None and not objective.by_token:
        raise ValueError(f"rollouts.importance_cap: weighs tokens, and {objective.name} compares whole responses")
    if rollouts.samples == 1 and objective.name in {"rloo", "grpo", "online"}:
        raise ValueError(f"rollouts.samples: {objective.name} compares responses to one prompt, so at least 2")
    lora = run.model.lora
    if objective.by_token and (run.model.keep_dropout or (lora is not None and lora.dropout)):
        key = "model.keep_dropout" if run.model.keep_dropout else "model.lora.dropout"
        raise ValueError(
            f"{key}: {objective.name} weighs the policy's probabilities against those it wrote with, and dropout "
            "alone would part them; leave it out"
        )
    responses = rollouts.prompts * rollouts.samples
    if (
        isinstance(objective, PolicyGradientSection)
        and objective.kl_target is not None
        and KL_STEP * responses >= objective.kl_horizon
    ):
        raise ValueError(
            f"objective.kl_horizon ({objective.kl_horizon:g}) should be above {KL_STEP * responses:g}: a round of "
            f"{responses} responses could take the KL coefficient to 0 or below"
        )
    if run.data.comparisons != "every_pair":
        raise ValueError(
            f"data.comparisons ({run.data.comparisons}): is for the responses of data.train, which "
            f"{objective.name} does not read"
        )
    if run.data.unseen_fraction is not None:
        raise ValueError("data.unseen_fraction: is for pairs; rollouts are evaluated on the prompts of data.eval alone")
