"""What the best of several is worth: intervals that hold for whichever is chosen, and what the choice flatters.

Whoever looks best of several was lucky, too. Its own interval, made as if it alone had been looked at, is then too
high: of eight equal ones it covers the truth in 81 of 100 cases, not in 95.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm, t

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


def simultaneous_intervals(
    outcomes: Floats, *, confidence: float = CONFIDENCE, resamples: int = 4000, seed: int = 0
) -> list[tuple[float, float]]:
    """Of each candidate's mean outcome; all hold together with `confidence`, so that of the best one does, too.

    `outcomes (candidates, prompts, rounds)`: from 0 to 1 (win, loss, or between), NaN where there is none; each
    candidate has some. Prompts are resampled, the same for all candidates, with all their rounds: the quantile of the
    largest of their deviations, each in its standard errors (Romano & Wolf 2005, Econometrica 73:1237), knows how far
    candidates go together on the same prompts, which Bonferroni's correction does not. It is laid on the scale of
    log-odds, where a mean near 0 or 1 has room on one side alone.

    Where a candidate's prompts all came out alike, nothing is seen of how they vary: its interval is Clopper and
    Pearson's (1934) with Bonferroni's correction.
    """
    answered = ~np.isnan(outcomes)
    sums, counts = np.where(answered, outcomes, 0.0).sum(axis=2), answered.sum(axis=2).astype(np.float64)
    prompts = outcomes.shape[1]
    totals = counts.sum(axis=1)
    means = sums.sum(axis=1) / totals
    residuals = sums - means[:, None] * counts
    used = (counts > 0).sum(axis=1)
    errors = np.sqrt((residuals**2).sum(axis=1) * used / np.maximum(used - 1, 1)) / totals
    varied = np.ptp(np.where(counts > 0, sums / np.maximum(counts, 1), means[:, None]), axis=1) > 1e-12
    weights = _resampled(prompts, resamples, seed)
    drawn = weights @ counts[varied].T  # (resamples, varied)
    deviations = np.abs(weights @ residuals[varied].T) / np.maximum(drawn, 1) / errors[varied]
    far = float(np.quantile(deviations.max(axis=1, initial=0.0), confidence))
    found = []
    alpha = (1 - confidence) / len(outcomes)
    for mean, error, n, varies in zip(means.tolist(), errors.tolist(), used.tolist(), varied.tolist(), strict=True):
        if not varies:
            unseen = 1 - (alpha / 2) ** (1 / n)
            found.append((mean * (1 - unseen), mean + unseen * (1 - mean)))
            continue
        # The quantile is one of deviations whose spread is known; Student's tails are for that it is not.
        reach = far * t.isf(norm.sf(far), n - 1) / far if far else 0.0
        centre, half = logit(mean), reach * error / (mean * (1 - mean))
        found.append((float(expit(centre - half)), float(expit(centre + half))))
    return found


@lru_cache(4)
def _resampled(prompts: int, resamples: int, seed: int) -> Floats:
    """How often each resample has each prompt, `(resamples, prompts)`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)


def flattery(ranked: Sequence[float], unseen: Sequence[float], chosen: int) -> float:
    """By how much the number that candidate `chosen` was chosen by is above what it is worth, for having been chosen.

    `ranked`, `unseen`: of each candidate the number that ranked it and the same of pairs that did not. What separates
    the two kinds of pairs is the same for all candidates, so it is what they differ by on average; what the chosen one
    differs by beyond is its luck. Its own error is that of the two numbers, so it may come out on the other side of 0.
    """
    gaps = np.asarray(ranked, dtype=np.float64) - np.asarray(unseen, dtype=np.float64)
    return float(gaps[chosen] - gaps.mean())
