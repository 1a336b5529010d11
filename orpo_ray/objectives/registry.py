"""From an objective's configuration to the function that the loop calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from orpo_ray.config.objectives import (
    CpoConfig,
    DpoConfig,
    IpoConfig,
    KtoPairConfig,
    ObjectiveConfig,
    OrpoConfig,
    ProbabilityRatioConfig,
    SftConfig,
    SimpoConfig,
    UnlikelihoodConfig,
)
from orpo_ray.objectives.cpo import cpo
from orpo_ray.objectives.dpo import dpo
from orpo_ray.objectives.gradient_analysis import gradient_metrics
from orpo_ray.objectives.ipo import ipo
from orpo_ray.objectives.kto import kto_pair
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.probability_ratio import probability_ratio
from orpo_ray.objectives.reward import reward
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.simpo import simpo
from orpo_ray.objectives.terms import Metrics, Totals
from orpo_ray.objectives.unlikelihood import unlikelihood

LossAndMetrics = tuple[Tensor, Metrics]


@dataclass(frozen=True)
class Objective:
    """What the loop has to know of an objective."""

    function: Callable[..., LossAndMetrics]
    continuations: int = 2
    """Continuations of a prompt that training packs: 1 is chosen, 2 is chosen and rejected."""
    score_prompts: bool = False
    """Whether the NLL counts prompt tokens."""
    needs_reference: bool = False
    """Whether the loss compares with a reference model's log-probs."""
    model: Literal["policy", "reward"] = "policy"

    def loss(self, sums: Tensor, lengths: Tensor, totals: Totals, reference: Tensor | None) -> LossAndMetrics:
        """Shares of the loss and of the metrics; see `objectives.terms`.

        `reference (pairs, 2)`: summed log-probs of chosen and rejected under the reference model, for an
        objective that needs one.
        """
        if self.needs_reference:
            return self.function(sums, lengths, totals, reference=reference)
        return self.function(sums, lengths, totals)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config` names, with its settings bound."""
    settings: dict[str, Any] = {"score_prompts": getattr(config, "nll_tokens", None) == "prompt_and_chosen"}
    match config:
        case OrpoConfig():
            function: Callable[..., LossAndMetrics] = partial(orpo, lambda_=config.lambda_)
            return Objective(_with_gradient_metrics(function) if config.gradient_metrics else function, **settings)
        case ProbabilityRatioConfig():
            return Objective(partial(probability_ratio, lambda_=config.lambda_), **settings)
        case SftConfig():
            return Objective(sft, continuations=1, **settings)
        case CpoConfig():
            return Objective(partial(cpo, beta=config.beta, lambda_=config.lambda_), **settings)
        case UnlikelihoodConfig():
            return Objective(partial(unlikelihood, alpha=config.alpha), **settings)
        case SimpoConfig():
            return Objective(partial(simpo, beta=config.beta, gamma=config.gamma))
        case DpoConfig():
            return Objective(partial(dpo, beta=config.beta), needs_reference=True)
        case IpoConfig():
            return Objective(partial(ipo, tau=config.tau), needs_reference=True)
        case KtoPairConfig():
            return Objective(partial(kto_pair, beta=config.beta, baseline=config.baseline), needs_reference=True)
        case _:
            return Objective(reward, model="reward")


def _with_gradient_metrics(function: Callable[..., LossAndMetrics]) -> Callable[..., LossAndMetrics]:
    def with_metrics(sums: Tensor, lengths: Tensor, totals: Totals) -> LossAndMetrics:
        loss, metrics = function(sums, lengths, totals)
        return loss, {**metrics, **gradient_metrics(sums, lengths, totals)}

    return with_metrics
