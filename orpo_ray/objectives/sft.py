"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from torch import Tensor

from orpo_ray.objectives.terms import Metrics, Totals, mean_logps, nll_share, preference_metrics


def sft(sums: Tensor, lengths: Tensor, totals: Totals) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood per token of the chosen responses (and prompts, where scored).

    `sums`, `lengths (pairs, 2)`: of prompt and chosen; with a third column, rejected is measured too
    (evaluation does so: SFT raises rejected's log-prob, the paper's Figure 3) but not trained on.
    """
    nll = nll_share(sums, totals)
    return nll, {"loss": nll.detach(), "nll": nll.detach(), **preference_metrics(mean_logps(sums, lengths), totals)}
