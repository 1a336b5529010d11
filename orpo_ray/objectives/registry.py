"""From an objective's configuration to the function that the loop calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from orpo_ray.config import ObjectiveConfig, OrpoConfig
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.terms import Metrics, Totals


@dataclass(frozen=True)
class Objective:
    loss: Callable[[Tensor, Tensor, Totals], tuple[Tensor, Metrics]]
    """`(sums, lengths, totals) -> (share of the loss, shares of the metrics)`; see `objectives.terms`."""
    continuations: int
    """Continuations of a prompt that training packs: 1 is chosen, 2 is chosen and rejected."""
    score_prompts: bool
    """Whether the NLL counts prompt tokens."""


def build_objective(config: ObjectiveConfig) -> Objective:
    score_prompts = config.nll_tokens == "prompt_and_chosen"
    if isinstance(config, OrpoConfig):
        return Objective(partial(orpo, lambda_=config.lambda_), continuations=2, score_prompts=score_prompts)
    return Objective(sft, continuations=1, score_prompts=score_prompts)
