"""Kahneman-Tversky Optimization on pairs (arXiv 2402.01306)."""

from __future__ import annotations

from torch import Tensor

from orpo_ray.objectives.margins import log_ratios, reference_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def kto_pair(
    sums: Tensor, lengths: Tensor, totals: Totals, *, reference: Tensor, beta: float, baseline: float
) -> tuple[Tensor, Metrics]:
    """Mean over responses of `1 - sigmoid(±beta * (log-ratio - baseline))`, plus for chosen, minus for rejected.

    That is the paper's loss with equal weights, on data that holds one desirable and one undesirable
    response to each prompt. `sums`, `lengths (pairs, 3)` and `reference (pairs, 2)` as for `dpo`; log-ratios
    are sums over tokens.

    `baseline` is the paper's reference point z0 >= 0, in nats per response, without gradient. The paper and
    TRL estimate it from whichever responses share a micro-batch, so that their loss changes with the batch
    size per device. Here it is given from outside, one number for all pairs of a step. At 0, its value at the
    start of training, where policy and reference agree, the loss is half of TRL's `apo_zero` (arXiv 2408.06266).
    """
    ratios = log_ratios(sums, reference)
    above = beta * (ratios - baseline)
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    losses = (-above[:, 0]).sigmoid() + above[:, 1].sigmoid()
    loss = losses.sum() / (2 * totals.pairs)
    return loss, {"loss": loss.detach(), **reference_metrics(sums, lengths, totals, reference, beta=beta)}
