"""Reward modeling: the Bradley-Terry likelihood of preferences (arXiv 2203.02155, Eq. 1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.margins import margin_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def reward(rewards: Tensor, lengths: Tensor, totals: Totals) -> tuple[Tensor, Metrics]:
    """`mean(-log sigmoid(r(chosen) - r(rejected)))`.

    `rewards (pairs, 3)`: scalar rewards of chosen and rejected in columns 1 and 2; column 0, the prompt's, is
    not read. Neither is `lengths`: it is here because every objective is called alike. Returns this
    micro-batch's share of the loss (scalar) and of the metrics.
    """
    loss = -logsigmoid(rewards[:, 1] - rewards[:, 2]).sum() / totals.pairs
    return loss, {"loss": loss.detach(), **margin_metrics(rewards[:, 1:], totals)}
