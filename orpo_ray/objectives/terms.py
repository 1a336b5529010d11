"""What objectives share: global totals, mean log-probs, odds, and the metrics of a preference pair.

Conventions of every function here and in the objectives' own files:

- `sums (pairs, 1 + K)`: summed log-probs of `[prompt, chosen, rejected, …]`, float32 or wider; a prompt that
  is not scored has 0.
- `lengths (pairs, 1 + K)`: how many predictions each sum adds up.
- Losses and metrics are this micro-batch's *share*: sums divided by the totals of the whole global step.
  Adding the shares of all micro-batches and ranks gives the global means, however the step was cut.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Metrics = dict[str, Tensor]

# The log-prob nearest to zero that odds are taken of; at P = 1 they are infinite. Its odds ratio is e^27.6.
_LARGEST_LOGP = -1e-12


class Totals(NamedTuple):
    """What a global step (or a whole evaluation) adds up to, over all ranks and micro-batches."""

    pairs: int
    """Comparisons; of an objective that judges responses one by one, responses."""
    nll_tokens: int
    """Predictions that the NLL term counts: prompt (if scored) and chosen, of each comparison."""
    records: int = 0
    """Prompts with their responses."""
    desirable: int = 0
    """Of the responses that are judged one by one."""


def log_odds(logp: Tensor) -> Tensor:
    """`log(P / (1 - P))` of `logp = log P <= 0`, elementwise (arXiv 2403.07691, Eq. 4).

    Finite in value and gradient for every input: `logp` is held at or below -1e-12, where the gradient of
    the clamp is zero.
    """
    held = logp.clamp(max=_LARGEST_LOGP)
    return held - _log1mexp(held)


def _log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x < 0, by the form that is accurate on each side of -ln 2.

    Each branch gets a harmless input where the other is taken: `where` would let its NaN gradients through.
    """
    near_zero = x > -math.log(2)
    harmless = torch.full_like(x, -1.0)
    close = torch.log(-torch.expm1(torch.where(near_zero, x, harmless)))
    far = torch.log1p(-torch.exp(torch.where(near_zero, harmless, x)))
    return torch.where(near_zero, close, far)


def mean_logps(sums: Tensor, lengths: Tensor) -> Tensor:
    """Length-averaged log-probs `(pairs, K)` of the continuations (Eq. 3)."""
    return sums[:, 1:] / lengths[:, 1:]


def nll_share(sums: Tensor, totals: Totals) -> Tensor:
    """Negative log-likelihood of chosen (and of prompts, where scored), per token of the global step."""
    return -sums[:, :2].sum() / totals.nll_tokens


def preference_metrics(logps: Tensor, totals: Totals) -> Metrics:
    """Shares of the log-probs, and of the pair's odds where `logps (pairs, K)` has a rejected column."""
    chosen = logps[:, 0]
    metrics = {"logps_chosen": chosen.sum() / totals.pairs}
    if logps.shape[1] > 1:
        rejected = logps[:, 1]
        log_odds_ratio = log_odds(chosen) - log_odds(rejected)
        metrics |= {
            "logps_rejected": rejected.sum() / totals.pairs,
            "log_odds_ratio": log_odds_ratio.sum() / totals.pairs,
            "odds_ratio_loss": -torch.nn.functional.logsigmoid(log_odds_ratio).sum() / totals.pairs,
            "reward_accuracy": ((chosen - rejected).sign() + 1).sum() / (2 * totals.pairs),  # ties count half
        }
    return {name: share.detach() for name, share in metrics.items()}
