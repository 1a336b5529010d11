"""From an objective's configuration to the function that the loop calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orpo_ray.config.objectives import (
    Column,
    CpoConfig,
    DpoConfig,
    GrpoConfig,
    IpoConfig,
    KtoConfig,
    KtoPairConfig,
    ObjectiveConfig,
    ObjectiveSection,
    OnlineConfig,
    OrpoConfig,
    PpoConfig,
    ProbabilityRatioConfig,
    RewardConfig,
    RlooConfig,
    SftConfig,
    SimpoConfig,
    UnlikelihoodConfig,
)
from orpo_ray.objectives.cpo import cpo
from orpo_ray.objectives.dpo import dpo
from orpo_ray.objectives.gradient_analysis import gradient_metrics
from orpo_ray.objectives.grpo import grpo
from orpo_ray.objectives.ipo import ipo
from orpo_ray.objectives.kto import kto, kto_pair
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.ppo import ppo
from orpo_ray.objectives.probability_ratio import probability_ratio
from orpo_ray.objectives.reliability import diagnostics
from orpo_ray.objectives.reward import plackett_luce, reward
from orpo_ray.objectives.rloo import rloo
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.simpo import simpo
from orpo_ray.objectives.terms import Metrics, Totals
from orpo_ray.objectives.unlikelihood import unlikelihood

LossAndMetrics = tuple[Tensor, Metrics]
Columns = Mapping[Column, Tensor]
_NOTHING: Columns = MappingProxyType({})


@dataclass(frozen=True)
class Objective:
    """What the loop has to know of an objective."""

    settings: ObjectiveSection
    function: Callable[..., LossAndMetrics]
    diagnose: Callable[[NDArray[np.float64], NDArray[np.int64]], dict[str, float]] | None = None
    """What else is said of held-out comparisons: of `scores`, `lengths (pairs, 3)`."""

    @property
    def model(self) -> Literal["policy", "reward"]:
        """What it trains."""
        return self.settings.model

    @property
    def best_alone(self) -> bool:
        """Whether training packs the best (chosen) response of a prompt alone."""
        return self.settings.best_alone

    @property
    def score_prompts(self) -> bool:
        """Whether the NLL counts prompt tokens."""
        return self.settings.score_prompts

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model's log-probs."""
        return "reference" in self.settings.columns

    @property
    def judges_labels(self) -> bool:
        """Whether responses are judged one by one, by their labels, against a reference point."""
        return self.settings.judges_labels

    def loss(self, scores: Tensor, lengths: Tensor, totals: Totals, columns: Columns = _NOTHING) -> LossAndMetrics:
        """Shares of the loss and of the metrics; see `objectives.terms`.

        `scores`: summed log-probs of a policy, or rewards. `columns`: of the rows, or of the whole step; those that it
        reads (see `config.objectives.Column`) must be there.
        """
        return self.function(scores, lengths, totals, **self._read(columns))

    def loss_of_tokens(self, scored: Tensor, responses: Tensor, totals: Totals, columns: Columns) -> LossAndMetrics:
        """As `loss`, of an objective that reads tokens (`settings.by_token`); see `objectives.surrogate`.

        `scored (tokens,)`: log-probs of the response tokens of all samples; `(tokens, 2)` where there is a critic: its
        values beside them. `responses (samples,)`: tokens of each, int64. `columns (tokens,)`.
        """
        if not self.settings.has_critic:
            return self.function(scored, responses, totals, **self._read(columns))
        logps, values = scored.unbind(dim=1)
        return self.function(logps, responses, totals, values=values, **self._read(columns))

    def _read(self, columns: Columns) -> dict[str, Tensor]:
        return {name: columns[name] for name in self.settings.columns}


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config` names, with its settings bound."""
    return Objective(config, _function(config), diagnostics if config.model == "reward" else None)


def _function(config: ObjectiveConfig) -> Callable[..., LossAndMetrics]:
    match config:
        case OrpoConfig():
            function = partial(orpo, lambda_=config.lambda_)
            return _with_gradient_metrics(function) if config.gradient_metrics else function
        case ProbabilityRatioConfig():
            return partial(probability_ratio, lambda_=config.lambda_)
        case SftConfig():
            return sft
        case CpoConfig():
            return partial(cpo, beta=config.beta, lambda_=config.lambda_)
        case UnlikelihoodConfig():
            return partial(unlikelihood, alpha=config.alpha)
        case SimpoConfig():
            return partial(simpo, beta=config.beta, gamma=config.gamma)
        case DpoConfig():
            return partial(dpo, beta=config.beta)
        case IpoConfig():
            return partial(ipo, tau=config.tau)
        case KtoPairConfig():
            return partial(kto_pair, beta=config.beta, baseline=config.baseline)
        case KtoConfig():
            return partial(
                kto, beta=config.beta, desirable_weight=config.desirable_weight,
                undesirable_weight=config.undesirable_weight,
            )  # fmt: skip
        case RewardConfig():
            return plackett_luce if config.loss == "plackett_luce" else reward
        case PpoConfig():
            return partial(ppo, clip=config.clip, value_clip=config.value_clip, value_weight=config.value_weight)
        case RlooConfig():
            return partial(rloo, clip=config.clip)
        case GrpoConfig():
            return partial(grpo, clip=config.clip, token_mean=config.token_mean)
        case OnlineConfig():
            return _without_kl(_function(config.pairs))


def _without_kl(function: Callable[..., LossAndMetrics]) -> Callable[..., LossAndMetrics]:
    """Of rollouts `kl` is what all of a round's responses have, not the drift of chosen ones per token."""

    def with_metrics(*given: Tensor, **columns: Tensor) -> LossAndMetrics:
        loss, metrics = function(*given, **columns)
        return loss, {name: metric for name, metric in metrics.items() if name != "kl"}

    return with_metrics


def _with_gradient_metrics(function: Callable[..., LossAndMetrics]) -> Callable[..., LossAndMetrics]:
    def with_metrics(sums: Tensor, lengths: Tensor, totals: Totals) -> LossAndMetrics:
        loss, metrics = function(sums, lengths, totals)
        return loss, {**metrics, **gradient_metrics(sums, lengths, totals)}

    return with_metrics
