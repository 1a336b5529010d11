"""Rollouts: what the policy in training writes, and who scores it (issue 19)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orpo_ray.config.section import Count, CountOrAuto, Integer, Number, PathSection, RunName, Section, WholeOrAuto

VLLM_TEMPERATURES = (0.01, 2.0)
"""The lowest, instead of which vLLM draws at it and says so in its log alone, and the highest that it draws at."""


class RewardSourceConfig(PathSection):
    """One of those that score responses. Where only its path is given, the text alone stands for it."""

    path: str
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

    @model_validator(mode="after")
    def _the_engine_draws_at_the_temperature(self) -> RolloutsConfig:
        least, most = VLLM_TEMPERATURES
        if self.engine == "vllm" and not least <= self.temperature <= most:
            raise ValueError(
                f"temperature ({self.temperature:g}): vLLM draws at {least:g} to {most:g}; engine=transformers at any"
            )
        return self
