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
    KtoConfig,
    KtoPairConfig,
    ObjectiveConfig,
    OrpoConfig,
    ProbabilityRatioConfig,
    RewardConfig,
    SftConfig,
    SimpoConfig,
    UnlikelihoodConfig,
)
from orpo_ray.objectives.cpo import cpo
from orpo_ray.objectives.dpo import dpo
from orpo_ray.objectives.gradient_analysis import gradient_metrics
from orpo_ray.objectives.ipo import ipo
from orpo_ray.objectives.kto import kto, kto_pair
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.probability_ratio import probability_ratio
from orpo_ray.objectives.reward import plackett_luce, reward
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.simpo import simpo
from orpo_ray.objectives.terms import Metrics, Totals
from orpo_ray.objectives.unlikelihood import unlikelihood

LossAndMetrics = tuple[Tensor, Metrics]


@dataclass(frozen=True)
class Objective:
    """What the loop has to know of an objective."""

    function: Callable[..., LossAndMetrics]
    best_alone: bool = False
    """Whether training packs the best (chosen) response of a prompt alone."""
    score_prompts: bool = False
    """Whether the NLL counts prompt tokens."""
    needs_reference: bool = False
    """Whether the loss compares with a reference model's log-probs."""
    model: Literal["policy", "reward"] = "policy"
    reads_rankings: bool = False
    """Whether the loss is one of whole rankings: it is told which pairs make a choice."""
    judges_labels: bool = False
    """Whether responses are judged one by one, by their labels, against a reference point."""

    def loss(
        self,
        sums: Tensor,
        lengths: Tensor,
        totals: Totals,
        reference: Tensor | None,
        *,
        choices: Tensor | None = None,
        desirable: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> LossAndMetrics:
        """Shares of the loss and of the metrics; see `objectives.terms`.

        `reference (pairs, 2)`: summed log-probs of chosen and rejected under the reference model, for an
        objective that needs one. `choices`: see `plackett_luce`; `desirable`, `baseline`: see `kto`.
        """
        given: dict[str, Tensor | None] = {}
        if self.needs_reference:
            given["reference"] = reference
        if self.reads_rankings:
            given["choices"] = choices
        if self.judges_labels:
            given |= {"desirable": desirable, "baseline": baseline}
        return self.function(sums, lengths, totals, **given)


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
            return Objective(sft, best_alone=True, **settings)
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
        case KtoConfig():
            function = partial(
                kto,
                beta=config.beta,
                desirable_weight=config.desirable_weight,
                undesirable_weight=config.undesirable_weight,
            )
            return Objective(function, needs_reference=True, judges_labels=True)
        case RewardConfig():
            if config.loss == "plackett_luce":
                return Objective(plackett_luce, model="reward", reads_rankings=True)
            return Objective(reward, model="reward")


def _with_gradient_metrics(function: Callable[..., LossAndMetrics]) -> Callable[..., LossAndMetrics]:
    def with_metrics(sums: Tensor, lengths: Tensor, totals: Totals) -> LossAndMetrics:
        loss, metrics = function(sums, lengths, totals)
        return loss, {**metrics, **gradient_metrics(sums, lengths, totals)}

    return with_metrics
