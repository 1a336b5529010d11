"""Reward modeling: the likelihood of preferences, by pairs or by whole rankings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from orpo_ray.objectives.margins import margin_metrics
from orpo_ray.objectives.terms import Metrics, Totals


def reward(rewards: Tensor, lengths: Tensor, totals: Totals) -> tuple[Tensor, Metrics]:
    """`mean(-log sigmoid(r(chosen) - r(rejected)))`: Bradley-Terry (arXiv 2203.02155, Eq. 1).

    `rewards (pairs, 3)`: scalar rewards of chosen and rejected in columns 1 and 2; column 0, the prompt's, is
    not read. Neither is `lengths`: it is here because every objective is called alike. Returns this
    micro-batch's share of the loss (scalar) and of the metrics.
    """
    loss = -logsigmoid(rewards[:, 1] - rewards[:, 2]).sum() / totals.pairs
    return loss, {"loss": loss.detach(), **margin_metrics(rewards[:, 1:], totals)}


def plackett_luce(rewards: Tensor, lengths: Tensor, totals: Totals, *, choices: Tensor) -> tuple[Tensor, Metrics]:
    """Mean over prompts of `-log P(ranking)`, `P` the product over responses of `exp r / (exp r + sum of exp r')`, with
    `r'` of all that are ranked below (Plackett-Luce; arXiv 2305.18290, Eq. 18).

    `rewards (pairs, 3)` as for `reward`: every pair of a better and a worse response, those of one better response
    behind each other; `choices (winners,)`: how many pairs each has. Tied responses are in no pair: each is chosen
    before those below, and nothing is said of the order among them. Where all ties are at the end of a ranking, that
    is its exact likelihood. Of two responses it is `reward`'s loss. Metrics but the loss are means over pairs.
    """
    behind = rewards[:, 2] - rewards[:, 1]  # (pairs,)
    # log(1 + sum of exp(behind)) of each choice, with the largest exponent taken out.
    largest = torch.segment_reduce(behind.detach(), "max", lengths=choices, unsafe=True).clamp(min=0)
    scaled = (behind - largest.repeat_interleave(choices, output_size=len(behind))).exp()
    sums = torch.segment_reduce(scaled, "sum", lengths=choices, unsafe=True)
    loss = (largest + ((-largest).exp() + sums).log()).sum() / totals.records
    return loss, {"loss": loss.detach(), **margin_metrics(rewards[:, 1:], totals)}
