"""How often a reward model puts the better responses above the others, on records that say which these are.

The *margin* of a record is the lowest reward of its chosen responses less the highest of the others: of a pair,
`r(chosen) - r(rejected)`. It is *correct* where the margin is above `TIE`; a tie is not, as on RewardBench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from orpo_ray.statistics.winrate import CONFIDENCE, TIE, prompt_interval

Floats = NDArray[np.float64]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    records: int
    correct: int
    ties: int
    """No further apart than `TIE`; not correct."""
    accuracy: float
    """`correct / records`."""
    ci95: tuple[float, float]
    """Bootstrap over prompts: records of one prompt are not independent."""
    prompts: int


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` independent things. Of what is seldom or always right it is no point, as
    a bootstrap's is. `share * n` need not be whole: a tie counts half."""
    low, high = proportion_confint(share * n, n, alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def margin(rewards: Sequence[float | None], chosen: int) -> float:
    """Of a record whose first `chosen` responses are the better ones; NaN where one has no finite reward."""
    values = np.array(rewards, dtype=np.float64)  # None becomes NaN
    if not np.isfinite(values).all():
        return float("nan")
    return float(values[:chosen].min() - values[chosen:].max())


def accuracy(margins: Floats, prompts: Sequence[str]) -> Accuracy | None:
    """`margins (records,)`, NaN where there is none, and the prompt of each; None without a margin."""
    known = ~np.isnan(margins)
    if not known.any():
        return None
    kept = margins[known]
    _, cluster = np.unique([prompt for prompt, there in zip(prompts, known, strict=True) if there], return_inverse=True)
    correct = kept > TIE
    sums = np.bincount(cluster, weights=correct).astype(np.float64)
    counts = np.bincount(cluster).astype(np.float64)
    return Accuracy(
        records=len(kept),
        correct=int(correct.sum()),
        ties=int((np.abs(kept) <= TIE).sum()),
        accuracy=float(correct.mean()),
        ci95=prompt_interval(sums, counts, _RESAMPLES, seed=0),
        prompts=len(sums),
    )
