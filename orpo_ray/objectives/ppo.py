"""Proximal Policy Optimization (arXiv 1707.06347) with a critic, as in InstructGPT (arXiv 2203.02155)."""

from __future__ import annotations

import torch
from torch import Tensor

from orpo_ray.objectives.surrogate import approximate_kl, clipped_surrogate, ratio_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def ppo(
    logps: Tensor,
    responses: Tensor,
    totals: Totals,
    *,
    values: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    importance: Tensor,
    old_values: Tensor,
    returns: Tensor,
    clip: float,
    value_clip: float | None,
    value_weight: float,
) -> tuple[Tensor, Metrics]:
    """Mean over the step's response tokens of `-w * min(r * A, clip(r, 1 ± clip) * A) + value_weight * L_value`, with
    `r = exp(logps - old_logps)` of each token.

    `L_value = 1/2 * max((V - R)^2, (clip(V, V_old ± value_clip) - R)^2)`, or of the first alone where `value_clip` is
    None. All tensors are `(tokens,)`, but for `responses (samples,)`, which is not read: every token weighs the same,
    one of a long response as much as one of a short one. `importance` is `w`; it weighs the policy's loss and not the
    critic's, whose returns are what was seen. The KL to the reference is in the advantages.

    Returns this micro-batch's share of the loss (scalar) and of the metrics; `value_loss` is without its weight.
    """
    log_ratios = logps - old_logps
    losses, held = clipped_surrogate(log_ratios, advantages, clip)
    policy_loss = (importance * losses).sum() / totals.nll_tokens
    errors = (values - returns).square()
    values_held = torch.zeros_like(held)
    if value_clip is not None:
        moved = values - old_values
        clipped = (old_values + moved.clamp(-value_clip, value_clip) - returns).square()
        # Within the clip both squares are the same but for rounding, which is no clipping.
        values_held = (moved.abs() > value_clip) & (clipped > errors)
        errors = torch.where(values_held, clipped, errors)
    value_loss = errors.sum() / (2 * totals.nll_tokens)
    loss = policy_loss + value_weight * value_loss
    return loss, {
        "loss": loss.detach(),
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        **ratio_metrics(log_ratios, held, totals.nll_tokens),
        "value_clip_fraction": values_held.sum() / totals.nll_tokens,
        "approx_kl": approximate_kl(log_ratios, totals.nll_tokens),
    }
