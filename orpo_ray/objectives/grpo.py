"""Group Relative Policy Optimization (arXiv 2402.03300), with the KL in the reward and not in the loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from orpo_ray.objectives.surrogate import approximate_kl, clipped_surrogate, ratio_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def grpo(
    logps: Tensor,
    responses: Tensor,
    totals: Totals,
    *,
    old_logps: Tensor,
    advantages: Tensor,
    importance: Tensor,
    clip: float,
    token_mean: Literal["response", "batch"],
) -> tuple[Tensor, Metrics]:
    """Mean over response tokens of `-w * min(r * A, clip(r, 1 ± clip) * A)`, with `r = exp(logps - old_logps)` of each.

    `token_mean` says which mean: `response`, over the step's samples of the mean over each one's tokens (Eq. 3), so
    that a token of a long response counts for less; `batch`, over all response tokens of the step, as DAPO does (arXiv
    2503.14476). `logps`, `old_logps`, `advantages`, `importance (tokens,)`; `responses (samples,)`: tokens each. Eq. 3
    has a KL estimate in the loss ("k3") whose gradient is not that of the KL; here the KL is in the advantages.

    Returns this micro-batch's share of the loss (scalar) and of the metrics, which are means over the step's tokens.
    """
    log_ratios = logps - old_logps
    losses, held = clipped_surrogate(log_ratios, advantages, clip)
    weighed = importance * losses
    if token_mean == "response":
        weighed = weighed / responses.repeat_interleave(responses, output_size=len(logps))
        loss = weighed.sum() / totals.pairs
    else:
        loss = weighed.sum() / totals.nll_tokens
    return loss, {
        "loss": loss.detach(),
        "policy_loss": loss.detach(),
        **ratio_metrics(log_ratios, held, totals.nll_tokens),
        "approx_kl": approximate_kl(log_ratios, totals.nll_tokens),
    }
