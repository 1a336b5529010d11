"""The ORPO paper's ablation: the probability ratio in place of the odds ratio (arXiv 2403.07691)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.terms import Metrics, Totals, mean_logps, nll_share, preference_metrics


def probability_ratio(sums: Tensor, lengths: Tensor, totals: Totals, *, lambda_: float) -> tuple[Tensor, Metrics]:
    """`L_SFT + lambda * mean(-log sigmoid(log P(chosen) - log P(rejected)))`: `orpo` with P for odds.

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`); log P is a mean over a response's
    tokens. Returns this micro-batch's share of the loss (scalar) and of the metrics, which include the log
    odds ratio of the same pairs (Figures 6 and 8).
    """
    logps = mean_logps(sums, lengths)
    log_ratio = logps[:, 0] - logps[:, 1]
    probability_ratio_loss = -logsigmoid(log_ratio).sum() / totals.pairs
    nll = nll_share(sums, totals)
    loss = nll + lambda_ * probability_ratio_loss
    return loss, {
        "loss": loss.detach(),
        "nll": nll.detach(),
        "probability_ratio_loss": probability_ratio_loss.detach(),
        "log_probability_ratio": log_ratio.detach().sum() / totals.pairs,
        **preference_metrics(logps, totals),
    }
