"""Simple Preference Optimization (arXiv 2405.14734)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.margins import implicit_reward_metrics
from orpo_ray.objectives.terms import Metrics, Totals, mean_logps


def simpo(sums: Tensor, lengths: Tensor, totals: Totals, *, beta: float, gamma: float) -> tuple[Tensor, Metrics]:
    """`mean(-log sigmoid(beta * (log P(chosen) - log P(rejected)) - gamma))` (Eq. 6), log P a mean over tokens.

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`). No reference model and no NLL
    term. `gamma` is the margin of rewards, as in the paper and in TRL's `simpo_gamma`; the authors' scripts
    give `gamma / beta`. Returns this micro-batch's share of the loss (scalar) and of the metrics.
    """
    rewards = beta * mean_logps(sums, lengths)
    loss = -logsigmoid(rewards[:, 0] - rewards[:, 1] - gamma).sum() / totals.pairs
    return loss, {"loss": loss.detach(), **implicit_reward_metrics(sums, lengths, totals, rewards)}
