"""Kahneman-Tversky Optimization (arXiv 2402.01306): of labelled responses, and of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from orpo_ray.objectives.margins import log_ratios, reference_metrics
from orpo_ray.objectives.terms import Metrics, Totals, mean_logps


def kto(
    sums: Tensor,
    lengths: Tensor,
    totals: Totals,
    *,
    reference: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Metrics]:
    """Mean over responses of `w * (1 - sigmoid(±beta * (log-ratio - baseline)))`, plus for desirable ones (Eq. 7).

    `sums`, `lengths (responses, 2)`: of the prompt and of the response (see `terms`); `reference (responses, 1)`: its
    summed log-prob under the reference model; `desirable (responses,)`: its label, which decides on sign and weight.
    Log-ratios are sums over tokens.

    `baseline`: the paper's reference point z0, a scalar >= 0 without gradient: the mean log-ratio of prompts with
    another prompt's response, over the whole step and not, as in the paper and in TRL, over what shares a micro-batch.

    Returns this micro-batch's share of the loss (scalar) and of the metrics. Rewards are `beta * log-ratio`; means over
    desirable (chosen) or undesirable (rejected) responses are NaN where the step has none.
    """
    ratios = log_ratios(sums, reference)[:, 0]
    gains = beta * torch.where(desirable, ratios - baseline, baseline - ratios)  # above the reference point, or below
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    losses = (-gains).sigmoid()
    loss = torch.where(desirable, desirable_weight * losses, undesirable_weight * losses).sum() / totals.pairs
    rewards, logps = beta * ratios.detach(), mean_logps(sums.detach(), lengths)[:, 0]
    metrics = {"loss": loss.detach()}
    for name, values in (("logps", logps), ("rewards", rewards)):
        metrics |= {f"{name}_{side}": share for side, share in _by_label(values, desirable, totals).items()}
    return loss, {
        **metrics,
        "reward_margin": metrics["rewards_chosen"] - metrics["rewards_rejected"],
        "reward_accuracy": ((gains.detach().sign() + 1) / 2).sum() / totals.pairs,
        "reference_point": baseline.detach() * len(ratios) / totals.pairs,
    }


def _by_label(values: Tensor, desirable: Tensor, totals: Totals) -> Metrics:
    """Shares of the means of `values (responses,)` over desirable and undesirable responses."""
    undesirable = totals.pairs - totals.desirable
    sides = (("chosen", desirable, totals.desirable), ("rejected", ~desirable, undesirable))
    # Not `values[side]`, for which the host would wait to know how many there are.
    return {name: values.where(side, 0.0).sum() / (count or torch.nan) for name, side, count in sides}


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
