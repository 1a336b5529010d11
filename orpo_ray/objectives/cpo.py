"""Contrastive Preference Optimization (arXiv 2401.08417)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.margins import implicit_reward_metrics
from orpo_ray.objectives.terms import Metrics, Totals, nll_share


def cpo(sums: Tensor, lengths: Tensor, totals: Totals, *, beta: float, lambda_: float) -> tuple[Tensor, Metrics]:
    """`mean(-log sigmoid(beta * (log pi(chosen) - log pi(rejected)))) + lambda * NLL(chosen)` (contrast: Eq. 3).

    `sums`, `lengths (pairs, 3)`: of prompt, chosen, rejected (see `terms`). The contrast is between *sums*
    over tokens: DPO with a uniform reference. The NLL is per token: the paper writes it per response, its
    code (TRL's `CPOTrainer`, by the same author) trains per token, with `lambda` (`cpo_alpha` there) 1.
    Returns this micro-batch's share of the loss (scalar) and of the metrics.
    """
    rewards = beta * sums[:, 1:]
    preference_loss = -logsigmoid(rewards[:, 0] - rewards[:, 1]).sum() / totals.pairs
    loss = preference_loss + lambda_ * nll_share(sums, totals)
    return loss, {
        "loss": loss.detach(),
        "preference_loss": preference_loss.detach(),
        **implicit_reward_metrics(sums, lengths, totals, rewards),
    }
