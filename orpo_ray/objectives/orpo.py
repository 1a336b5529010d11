"""Odds Ratio Preference Optimization (arXiv 2403.07691)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.terms import Metrics, Totals, log_odds, mean_logps, nll_share, preference_metrics


def orpo(sums: Tensor, lengths: Tensor, totals: Totals, *, lambda_: float) -> tuple[Tensor, Metrics]:
    """`L_SFT + lambda * mean(-log sigmoid(log odds(chosen) - log odds(rejected)))` (Eq. 6 and 7).

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`). Log-probs in the odds are means
    over a response's tokens (Eq. 3); `L_SFT` is per token. Returns this micro-batch's share of the loss
    (scalar) and of the metrics. `lambda_` is `beta` in TRL and `alpha` in the authors' code.
    """
    logps = mean_logps(sums, lengths)
    log_odds_ratio = log_odds(logps[:, 0]) - log_odds(logps[:, 1])
    nll = nll_share(sums, totals)
    odds_ratio_loss = -logsigmoid(log_odds_ratio).sum() / totals.pairs
    loss = nll + lambda_ * odds_ratio_loss
    return loss, {"loss": loss.detach(), "nll": nll.detach(), **preference_metrics(logps, totals)}
