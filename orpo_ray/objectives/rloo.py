"""REINFORCE leave-one-out (arXiv 2402.14740), clipped so that rollouts may be trained on more than once."""

from __future__ import annotations

import torch
from torch import Tensor

from orpo_ray.objectives.surrogate import approximate_kl, clipped_surrogate, ratio_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def rloo(
    logps: Tensor,
    responses: Tensor,
    totals: Totals,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    importance: Tensor,
    clip: float,
) -> tuple[Tensor, Metrics]:
    """Mean over the step's samples of `-w * min(r * A, clip(r, 1 ± clip) * A)`: a whole response is one action.

    `r = exp(sum of logps - old_logps)` over the response: the ratio of its probabilities. `logps`, `old_logps`,
    `advantages`, `importance (tokens,)`, the last two of the same value at every token of a response; `responses
    (samples,)`, tokens each, at least 1. `w` is the response's weight, the product over its tokens truncated as a whole
    (`advantages.importance` with lengths). In the first update of a round `r = 1`, and the gradient is that of
    `-w * A * log P(response)`: sums over tokens, so a long response moves the policy further, as in the paper.

    Returns this micro-batch's share of the loss (scalar) and of the metrics: `ratio` and `clip_fraction` are means over
    responses, `approx_kl` one over tokens, as of the other objectives.
    """
    moved = logps - old_logps
    # segment_reduce adds in order; index_add on CUDA would not give the same bits twice.
    log_ratios = torch.segment_reduce(moved, "sum", lengths=responses, unsafe=True)  # (samples,)
    first = responses.cumsum(0) - responses
    losses, held = clipped_surrogate(log_ratios, advantages[first], clip)
    loss = (importance[first] * losses).sum() / totals.pairs
    return loss, {
        "loss": loss.detach(),
        "policy_loss": loss.detach(),
        **ratio_metrics(log_ratios, held, totals.pairs),
        "approx_kl": approximate_kl(moved, totals.nll_tokens),
    }
