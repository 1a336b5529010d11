"""Unlikelihood of the rejected response (Welleck et al. 2019, arXiv 1908.04319)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.terms import Metrics, Totals, log_odds, mean_logps, nll_share, preference_metrics


def unlikelihood(sums: Tensor, lengths: Tensor, totals: Totals, *, alpha: float) -> tuple[Tensor, Metrics]:
    """`L_SFT + alpha * mean(-log(1 - P(rejected)))`, with log P the mean over a response's tokens.

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`). Welleck et al. sum
    `-log(1 - p(y_t))` over tokens; this takes the response as one event of the length-averaged probability,
    as ORPO's odds do (arXiv 2403.07691, Eq. 3), so that the two differ in nothing but the penalty. Returns
    this micro-batch's share of the loss (scalar) and of the metrics.
    """
    logps = mean_logps(sums, lengths)
    # -log(1 - P) = log(1 + odds): finite in value and gradient wherever log odds are.
    unlikelihood_loss = -logsigmoid(-log_odds(logps[:, 1])).sum() / totals.pairs
    nll = nll_share(sums, totals)
    loss = nll + alpha * unlikelihood_loss
    return loss, {
        "loss": loss.detach(),
        "nll": nll.detach(),
        "unlikelihood_loss": unlikelihood_loss.detach(),
        **preference_metrics(logps, totals),
    }
