"""Two models on the same comparisons: how far apart are what they give them, in the mean?

A *comparison* is a pair of responses that both models have scored; a record may hold several, which are not
independent, so the unit of all that is said about certainty is the record. Left out: records that share a prompt, which
none of these arrays tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orpo_ray.statistics.sign_flip import sign_flip_test
from orpo_ray.statistics.winrate import prompt_interval

Floats = NDArray[np.float64]

_RESAMPLES = 2_000
_ALIKE = 1e-12
"""As near as `prompt_interval` takes all means for the same one."""


@dataclass(frozen=True)
class Mean:
    """Over comparisons, each counting alike."""

    value: float
    ci95: tuple[float, float] | None
    """Bootstrap over records; None where all records came out alike and nothing bounds the values."""
    comparisons: int
    records: int


@dataclass(frozen=True)
class Difference(Mean):
    """A's mean less B's."""

    p_value: float
    """Two-sided sign-flip test, by record, of there being none."""


def mean(values: Floats, records: NDArray[np.integer], *, bound: float | None = None) -> Mean:
    """`values (comparisons,)`, finite, and the record of each. `bound`: no value is below 0 or above it, which tells
    something where all are alike. Raises `ValueError` where there is no comparison."""
    sums, counts = _by_record(values, records)
    interval = _interval(sums, counts, 0.0, bound)
    return Mean(float(values.mean()), interval, len(values), len(counts))


def difference(a: Floats, b: Floats, records: NDArray[np.integer], *, bound: float | None = None) -> Difference:
    """As `mean`, of `a - b (comparisons,)`; `bound` is of either's values."""
    sums, counts = _by_record(a - b, records)
    interval = _interval(sums, counts, 0.0 if bound is None else -bound, bound)
    p_value = sign_flip_test(2 * sums)  # whole numbers, and so exact, where an outcome may be one half
    return Difference(float((a - b).mean()), interval, len(a), len(counts), p_value)


def _by_record(values: Floats, records: NDArray[np.integer]) -> tuple[Floats, Floats]:
    if not len(values):
        raise ValueError("there is no comparison")
    place = np.unique(records, return_inverse=True)[1]
    return np.bincount(place, values).astype(np.float64), np.bincount(place).astype(np.float64)


def _interval(sums: Floats, counts: Floats, low: float, high: float | None) -> tuple[float, float] | None:
    """Of the mean, whose values are not outside `low` and `high`."""
    if high is None:
        return None if np.ptp(sums / counts) < _ALIKE else prompt_interval(sums, counts, _RESAMPLES, seed=0)
    width = high - low
    bottom, top = prompt_interval((sums - low * counts) / width, counts, _RESAMPLES, seed=0)
    return low + width * bottom, low + width * top
