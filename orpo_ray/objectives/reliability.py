"""How far a reward model's margins can be trusted: calibration, intervals, and accuracy by length.

On whole arrays, after an evaluation. `margins (pairs,)` is `r(chosen) - r(rejected)` throughout, and a pair is
*correct* where its margin is above zero: a tie counts as wrong here, because an interval needs whole counts
(the metric `reward_accuracy` counts it half; `Accuracy.ties` tells the two apart).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import binomtest

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """How often chosen wins."""

    pairs: int
    correct: int
    ties: int
    accuracy: float
    """`correct / pairs`."""
    ci95: tuple[float, float]
    """Wilson's 95 % interval of `accuracy`, for independent pairs."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The pairs whose confidence lies in `[low, high)`; the last bin includes its upper edge."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence of the bin's pairs."""
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    expected_calibration_error: float
    """Mean over pairs of their bin's `|accuracy - confidence|` (arXiv 1706.04599, Eq. 3)."""
    bins: tuple[ReliabilityBin, ...]
    """Those that hold pairs, by rising confidence."""


@dataclass(frozen=True)
class LengthGroup:
    """The pairs whose `len(chosen) - len(rejected)` lies from `shortest` to `longest`, both included."""

    shortest: int
    longest: int
    accuracy: Accuracy


@dataclass(frozen=True)
class AccuracyByLength:
    """Accuracy by how much longer chosen is; a model that just likes long answers loses where it is shorter."""

    quintiles: tuple[LengthGroup, ...]
    """By rising length difference. Equal differences stay together, so groups may be uneven, or fewer than five."""
    chosen_longer: Accuracy | None
    """None: no such pair."""
    chosen_shorter: Accuracy | None


def accuracy(margins: ArrayLike) -> Accuracy:
    """Raises `ValueError` where `margins (pairs,)` is empty or not finite."""
    margins = _checked(margins)
    correct = int((margins > 0).sum())
    interval = binomtest(correct, len(margins)).proportion_ci(0.95, method="wilson")
    return Accuracy(
        pairs=len(margins),
        correct=correct,
        ties=int((margins == 0).sum()),
        accuracy=correct / len(margins),
        ci95=(float(interval.low), float(interval.high)),
    )


def calibration(margins: ArrayLike, bins: int = 10) -> Calibration:
    """Confidence against accuracy in `bins` bins of equal width.

    The confidence of a pair is the Bradley-Terry probability of the side that the model prefers,
    `sigmoid(|margin|)`, so bins divide [0.5, 1]. Raises `ValueError` where `margins (pairs,)` is empty or not
    finite.
    """
    margins = _checked(margins)
    confidence: Floats = expit(np.abs(margins))
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1])
    filled = tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int((index == i).sum()),
            confidence=float(confidence[index == i].mean()),
            accuracy=float((margins[index == i] > 0).mean()),
        )
        for i in np.unique(index)
    )
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / len(margins)
    return Calibration(error, filled)


def accuracy_by_length(margins: ArrayLike, length_differences: ArrayLike) -> AccuracyByLength:
    """`length_differences (pairs,)`: tokens of chosen minus tokens of rejected.

    Raises `ValueError` where `margins (pairs,)` is empty or not finite.
    """
    margins = _checked(margins)
    differences = np.asarray(length_differences, dtype=np.int64)
    index = np.searchsorted(np.quantile(differences, [0.2, 0.4, 0.6, 0.8]), differences, side="left")
    quintiles = []
    for i in np.unique(index):
        members = differences[index == i]
        quintiles.append(LengthGroup(int(members.min()), int(members.max()), accuracy(margins[index == i])))
    longer, shorter = margins[differences > 0], margins[differences < 0]
    return AccuracyByLength(
        tuple(quintiles),
        chosen_longer=accuracy(longer) if len(longer) else None,
        chosen_shorter=accuracy(shorter) if len(shorter) else None,
    )


def diagnostics(rewards: NDArray[np.float64], lengths: NDArray[np.int64]) -> dict[str, float]:
    """Calibration of a reward model, and whether it just likes long answers, over comparisons.

    `rewards (pairs, 3)` of prompt (unused), chosen, rejected; `lengths (pairs, 3)` in tokens.
    """
    margins = rewards[:, 1] - rewards[:, 2]
    by_length = accuracy_by_length(margins, lengths[:, 1] - lengths[:, 2])
    found = {"calibration_error": calibration(margins).expected_calibration_error}
    for name, group in (("longer", by_length.chosen_longer), ("shorter", by_length.chosen_shorter)):
        if group is not None:
            found[f"accuracy_chosen_{name}"] = group.accuracy
    return found


def _checked(margins: ArrayLike) -> Floats:
    checked = np.asarray(margins, dtype=np.float64)
    if checked.ndim != 1 or not len(checked) or not np.isfinite(checked).all():
        raise ValueError("margins must be a non-empty, finite array of one dimension")
    return checked
