"""What policy gradients share: the clipped surrogate of an advantage, and what is told of the ratio.

Arrays of a micro-batch are flat: `(tokens,)` has the response tokens of its samples behind each other, without padding,
and `responses (samples,)` how many each has. In `Totals` a step's `pairs` are its samples, `nll_tokens` its response
tokens. Losses and metrics are shares, as in `terms`: never a micro-batch's own means.
"""

from __future__ import annotations

from torch import Tensor, where

from orpo_ray.objectives.terms import Metrics


def clipped_surrogate(log_ratios: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """`-min(r * A, clip(r, 1 ± clip) * A)` elementwise, with `r = exp(log_ratios)` (arXiv 1707.06347, Eq. 7); and
    where the clip is what counts, so that there is no gradient.

    A ratio beyond what the numbers hold does no harm where it is clipped, or where the advantage is 0: its infinite
    gradient times 0 would be NaN.
    """
    ratios = log_ratios.detach().exp()
    held = ((advantages > 0) & (ratios > 1 + clip)) | ((advantages < 0) & (ratios < 1 - clip))
    constant = held | (advantages == 0)
    moved = log_ratios.masked_fill(constant, 0.0).exp() * advantages
    return -where(constant, ratios.clamp(1 - clip, 1 + clip) * advantages, moved), held


def ratio_metrics(log_ratios: Tensor, held: Tensor, total: int) -> Metrics:
    """Shares of the mean ratio of policy and old policy, and of how often the clip holds it, over `total` actions."""
    return {"ratio": log_ratios.detach().exp().sum() / total, "clip_fraction": held.sum() / total}


def approximate_kl(log_ratios: Tensor, total: int) -> Tensor:
    """Share of the estimate of KL(old policy, policy) in nats per token: the mean of `r - 1 - log r`, never negative
    ("k3"), over `total` tokens of the old policy's. `log_ratios (tokens,)`."""
    moved = log_ratios.detach()
    return (moved.expm1() - moved).sum() / total
