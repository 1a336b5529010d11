"""Direct Preference Optimization (arXiv 2305.18290)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.margins import log_ratios, reference_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def dpo(sums: Tensor, lengths: Tensor, totals: Totals, *, reference: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """`mean(-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)))` (Eq. 7).

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`); `reference (pairs, 2)`: summed
    log-probs of chosen and rejected under the reference model. Log-ratios are sums over a response's tokens,
    not means. Returns this micro-batch's share of the loss (scalar) and of the metrics.
    """
    ratios = log_ratios(sums, reference)
    loss = -logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])).sum() / totals.pairs
    return loss, {"loss": loss.detach(), **reference_metrics(sums, lengths, totals, reference, beta=beta)}
