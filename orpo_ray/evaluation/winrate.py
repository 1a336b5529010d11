"""Win-rates between two models' responses to the same prompts, with bootstrap intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95


@dataclass(frozen=True)
class WinRate:
    """How often A's response scored above B's; ties count half, and `n = wins + ties + losses`."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    """A fraction: (wins + ties / 2) / n."""
    ci95: tuple[float, float]
    n: int


def win_rate(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate:
    """The share of comparisons that A wins against B.

    `scores_a[i]` and `scores_b[i]` (both `(n,)`) judge two responses to the same prompt. `groups` `(n,)` names
    the prompt of each comparison where a prompt was sampled several times; by default each comparison has its
    own. The interval is the percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13): whole
    prompts are drawn with replacement, both models' scores together, since the responses to one prompt are not
    independent. Raises `ValueError` for unequal lengths, no comparison, or a score that is not a finite number.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"expected two non-empty lists of equal length, found shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores must be finite numbers")
    outcomes = np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))
    sums, counts = _by_group(outcomes, groups)
    return WinRate(
        wins=int((a > b).sum()),
        ties=int((a == b).sum()),
        losses=int((a < b).sum()),
        win_rate=float(outcomes.mean()),
        ci95=_interval(sums, counts, resamples, seed),
        n=int(a.size),
    )


def _by_group(
    outcomes: NDArray[np.float64], groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of outcomes and number of comparisons of every prompt, both `(prompts,)`."""
    if groups is None:
        return outcomes, np.ones_like(outcomes)
    labels = np.asarray(groups)
    if labels.shape != outcomes.shape:
        raise ValueError(f"groups has shape {labels.shape}, the scores {outcomes.shape}")
    _, group = np.unique(labels, return_inverse=True)
    return np.bincount(group, weights=outcomes).astype(np.float64), np.bincount(group).astype(np.float64)


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    means = sums / counts
    if np.ptp(means) < 1e-12:
        # Every prompt came out alike, so resampling sees no spread. What n prompts did not show may still be up
        # to 1 - (alpha/2)^(1/n) of all prompts (Clopper & Pearson 1934), and as far off as a win or a loss.
        unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(means))
        value = float(means[0])
        return value * (1 - unseen), value + unseen * (1 - value)
    result = bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
