"""What drives ORPO's gradient: the two factors of Eq. 8 to 10 (arXiv 2403.07691), pair by pair.

The gradient of `L_OR = -log sigmoid(log odds(chosen) - log odds(rejected))` is `-delta * h`, where
`h = grad log P(chosen) / (1 - P(chosen)) - grad log P(rejected) / (1 - P(rejected))`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from orpo_ray.objectives.terms import Metrics, Totals, log_odds, mean_logps


class GradientFactors(NamedTuple):
    """Each `(pairs,)`."""

    delta: Tensor
    """`1 / (1 + odds(chosen) / odds(rejected))` in (0, 1): near 1 where rejected is still the likelier (Eq. 9)."""
    chosen: Tensor
    """`1 / (1 - P(chosen))`, at least 1: what h weighs chosen's gradient by (Eq. 10)."""
    rejected: Tensor
    """`1 / (1 - P(rejected))`, at least 1."""


def gradient_factors(logps: Tensor) -> GradientFactors:
    """The factors of `logps (pairs, 2)`, the mean log-probs of chosen and rejected.

    Finite for every `logps <= 0`: as the loss does, `1 / (1 - P)` holds log P at or below -1e-12, where it
    is 1e12. (Beyond that point the loss is flat, and autograd's gradient zero.)
    """
    odds = log_odds(logps)
    # 1 / (1 - P) = 1 + odds
    weights = 1 + odds.exp()
    return GradientFactors((odds[:, 1] - odds[:, 0]).sigmoid(), weights[:, 0], weights[:, 1])


def gradient_metrics(sums: Tensor, lengths: Tensor, totals: Totals) -> Metrics:
    """Shares of the factors' means over pairs; `sums`, `lengths (pairs, 3)` and shares as in `terms`."""
    factors = gradient_factors(mean_logps(sums.detach(), lengths))
    return {
        "gradient_delta": factors.delta.sum() / totals.pairs,
        "gradient_weight_chosen": factors.chosen.sum() / totals.pairs,
        "gradient_weight_rejected": factors.rejected.sum() / totals.pairs,
    }
