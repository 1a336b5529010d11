"""How far a judge parts from itself when it is asked the same again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Over what every judging could be read of: the same answers in the same order, judged again."""

    judgings: int
    answers: int
    """Answers, or pairs in one order, that all judgings have a verdict of."""
    flips: float
    """The share of two judgings of the same that give another verdict: another winner, a tie counted as one, or
    another rating."""
    sd: float
    """Standard deviation (ddof 1) of one verdict between judgings, their variances pooled over all answers."""
    means: tuple[float, ...]
    """Of each judging: its win-rate, or its mean rating."""
    sd_of_means: float
    """Their standard deviation (ddof 1)."""
    sd_by_chance: float
    """What `sd_of_means` would be if each verdict strayed by `sd` for itself: `sd / sqrt(answers)`. Far more of it is
    a judge that has moved as a whole, such as a model behind a server that was replaced."""


def judge_noise(values: Floats, verdicts: Floats) -> Noise | str:
    """`values (answers, judgings)`: ratings or outcomes, NaN where there is none; `verdicts` of the same shape: what
    has to differ for a flip. Where it cannot be told, why, in words."""
    judgings = values.shape[1]
    if judgings < 2:
        return "everything was judged once"
    whole = ~np.isnan(values).any(axis=1)
    if not whole.any():
        return f"nothing could be read in all {judgings} judgings"
    values, verdicts = values[whole], verdicts[whole]
    alike = np.mean([verdicts[:, i] == verdicts[:, j] for i in range(judgings) for j in range(i)])
    sd = np.sqrt(values.var(axis=1, ddof=1).mean())
    means = values.mean(axis=0)
    return Noise(
        judgings=judgings,
        answers=len(values),
        flips=float(1 - alike),
        sd=float(sd),
        means=tuple(means.tolist()),
        sd_of_means=float(means.std(ddof=1)),
        sd_by_chance=float(sd / np.sqrt(len(values))),
    )
