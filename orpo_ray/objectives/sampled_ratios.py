"""The two contrasts that a loss of pairs may take of the same probabilities: Figure 6 of the paper (arXiv 2403.07691).

With both probabilities drawn alike and at random, the log odds ratio is wider than the log probability ratio: the same
pair of probabilities asks a loss of the former for less.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PROBABILITY_SD = math.sqrt(2)
"""Standard deviation of the log probability ratio, a difference of two exponential variables (Laplace's law)."""
ODDS_SD = math.pi * math.sqrt(2 / 3)
"""Of the log odds ratio, a difference of two logistic ones."""


class Ratios(NamedTuple):
    """Each `(pairs,)`, in nats."""

    probability: Floats
    """`beta (log p1 - log p2)`."""
    odds: Floats
    """`log odds(p1) - log odds(p2)`."""


def sampled_ratios(pairs: int = 50_000, *, beta: float = 1.0, seed: int = 0) -> Ratios:
    """Of pairs of probabilities drawn uniformly from (0, 1), the paper's number of them by default."""
    one, other = np.random.default_rng(seed).uniform(size=(2, pairs))
    logit = np.log([one, other]) - np.log1p([-one, -other])
    return Ratios(beta * (np.log(one) - np.log(other)), logit[0] - logit[1])


def probability_beyond(nats: float) -> float:
    """How much of the log probability ratio's law (`beta` 1) lies further from 0 than `nats`, on either side."""
    return math.exp(-nats)


def odds_beyond(nats: float) -> float:
    """The same of the log odds ratio's; `nats` above 0."""
    far = math.exp(-nats)
    return 2 * far * (nats - 1 + far) / (1 - far) ** 2
