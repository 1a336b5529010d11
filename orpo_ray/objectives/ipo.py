"""Identity Preference Optimization (arXiv 2310.12036)."""

from __future__ import annotations

from torch import Tensor

from orpo_ray.objectives.margins import log_ratios, reference_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def ipo(sums: Tensor, lengths: Tensor, totals: Totals, *, reference: Tensor, tau: float) -> tuple[Tensor, Metrics]:
    """`mean((log-ratio of chosen - log-ratio of rejected - 1 / (2 * tau))^2)` (Eq. 17).

    `sums`, `lengths (pairs, 3)` and `reference (pairs, 2)` as for `dpo`. Log-ratios are sums over tokens, as
    the paper writes them. TRL divides each by its response's length (on word of IPO's authors): its margin is
    per token, so its `beta` asks for a far larger separation of a whole response than the same `tau` here.
    Implicit rewards in the metrics are `tau * log-ratio`; their margin is pulled to one half.
    """
    ratios = log_ratios(sums, reference)
    loss = (ratios[:, 0] - ratios[:, 1] - 1 / (2 * tau)).square().sum() / totals.pairs
    return loss, {"loss": loss.detach(), **reference_metrics(sums, lengths, totals, reference, beta=tau)}
