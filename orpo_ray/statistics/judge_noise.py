"""How far a judge parts from itself when it is asked the same again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Of the same answers in the same order, judged again; some more often than others, perhaps."""

    judgings: int
    """Of what was judged most often."""
    answers: int
    """Answers, or pairs in one order, of which two verdicts or more could be read."""
    flips: float
    """The share of two judgings of the same that give another verdict: another winner, a tie counted as one, or
    another rating."""
    sd: float
    """Standard deviation of one verdict around the mean of its answer's: variances (ddof 1) pooled over all answers,
    each by its degrees of freedom."""
    in_all: int
    """Answers that all judgings have a verdict of, of which the numbers below are."""
    means: tuple[float, ...]
    """Of each judging: its win-rate, or its mean rating. Empty where no answer is in all."""
    sd_of_means: float | None
    """Their standard deviation (ddof 1)."""
    sd_by_chance: float | None
    """What `sd_of_means` would be if each verdict strayed by `sd` for itself: `sd / sqrt(in_all)`. Far more of it is
    a judge that has moved as a whole, such as a model behind a server that was replaced."""


def judge_noise(values: Floats, verdicts: Floats) -> Noise | str:
    """`values (answers, judgings)`: ratings or outcomes, NaN where there is none; `verdicts` of the same shape: what
    has to differ for a flip. Where it cannot be told, why, in words."""
    judgings = values.shape[1]
    if judgings < 2:
        return "everything was judged once"
    there = ~np.isnan(values)
    again = there.sum(axis=1) > 1
    if not again.any():
        return "nothing could be read twice"
    values, verdicts, there = values[again], verdicts[again], there[again]
    times, whole = there.sum(axis=1), there.all(axis=1)
    both = [(there[:, i] & there[:, j], verdicts[:, i] != verdicts[:, j]) for i in range(judgings) for j in range(i)]
    own = np.where(there, values, 0.0).sum(axis=1) / times
    squares = np.where(there, (values - own[:, None]) ** 2, 0.0).sum()
    sd = float(np.sqrt(squares / (times - 1).sum()))
    means = values[whole].mean(axis=0) if whole.any() else None
    return Noise(
        judgings=judgings,
        answers=len(values),
        flips=float(sum((two & apart).sum() for two, apart in both) / sum(two.sum() for two, _ in both)),
        sd=sd,
        in_all=int(whole.sum()),
        means=() if means is None else tuple(means.tolist()),
        sd_of_means=None if means is None else float(means.std(ddof=1)),
        sd_by_chance=None if means is None else sd / float(np.sqrt(whole.sum())),
    )
