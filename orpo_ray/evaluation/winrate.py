"""Win-rates between two models' responses to the same prompts: interval, test, and control for length.

A *comparison* is one prompt in one round, both models' responses scored by the same reward model. Arrays are
`(prompts, rounds)`, or `(prompts,)` for one round, with NaN where a response has no score. Responses to one prompt
are not independent, so the unit of all that is said about certainty is the prompt with its rounds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import binom, bootstrap, norm
from scipy.stats import t as student
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.multitest import multipletests

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
TIE = 1e-4
"""Rewards no further apart than this are a tie: a packed reward equals that of a plain forward up to this bound."""


@dataclass(frozen=True)
class WinRate:
    """How often A's response scored above B's, over comparisons (prompt and round where both have a score)."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    """A fraction: (wins + ties / 2) / n."""
    sd: float
    """Standard deviation (ddof 1) of the rounds' win-rates, as in the paper's tables; 0 with one round."""
    ci95: tuple[float, float]
    """Bootstrap over prompts."""
    p_value: float
    """Two-sided, of a win-rate of one half; exact, by prompt."""
    rounds: tuple[float, ...]
    """The win-rate of each round that has a comparison."""
    prompts: int
    """How many have at least one comparison."""

    @property
    def n(self) -> int:
        """Comparisons."""
        return self.wins + self.ties + self.losses

    def reverse(self) -> WinRate:
        """B against A: the same comparisons and resamples, seen from the other side."""
        low, high = self.ci95
        return replace(
            self, wins=self.losses, losses=self.wins, win_rate=1 - self.win_rate, ci95=(1 - high, 1 - low),
            rounds=tuple(1 - rate for rate in self.rounds),
        )  # fmt: skip


def outcomes(scores_a: ArrayLike, scores_b: ArrayLike, *, tie: float = TIE) -> Floats:
    """`(prompts, rounds)`: 1 where A wins, 0.5 for a tie, 0 where B wins, NaN where one of them has no score.

    Raises `ValueError` for unequal shapes, more than two dimensions, or an infinite score.
    """
    a, b = _matrix(scores_a), _matrix(scores_b)
    if a.shape != b.shape:
        raise ValueError(f"expected scores of equal shape, found {a.shape} and {b.shape}")
    difference = a - b
    decided = np.where(np.abs(difference) <= tie, 0.5, (difference > 0).astype(np.float64))
    return np.where(np.isnan(difference), np.nan, decided)


def win_rate(
    scores_a: ArrayLike, scores_b: ArrayLike, *, tie: float = TIE, resamples: int = 10_000, seed: int = 0
) -> WinRate:
    """The share of comparisons that A wins against B, every comparison counting alike.

    `seed` draws the interval's `resamples`; nothing else is random. Raises `ValueError` as `outcomes` does, and
    where there is no comparison.
    """
    won = outcomes(scores_a, scores_b, tie=tie)
    compared = ~np.isnan(won)
    if not compared.any():
        raise ValueError("no prompt has a score of both models")
    rounds = np.nanmean(won[:, compared.any(axis=0)], axis=0)
    answered = won[compared.any(axis=1)]
    sums, counts = np.nansum(answered, axis=1), (~np.isnan(answered)).sum(axis=1).astype(np.float64)
    return WinRate(
        wins=int((won == 1).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won == 0).sum()),
        win_rate=float(sums.sum() / counts.sum()),
        sd=float(rounds.std(ddof=1)) if len(rounds) > 1 else 0.0,
        ci95=prompt_interval(sums, counts, resamples, seed),
        p_value=_p_value(sums, counts),
        rounds=tuple(rounds.tolist()),
        prompts=len(answered),
    )


def length_controlled(outcomes: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike) -> float | None:
    """A's win-rate at equal lengths: what is left once the judge's liking for length is taken out.

    `outcomes` is what the function of that name gives, lengths (any unit) have the same shape with NaN where a
    response is missing. As AlpacaEval 2 does (Dubois et al., arXiv 2404.04475), fits
    `P(A wins) = sigmoid(θ + φ tanh(Δ / sd(Δ)))`, Δ = length of A - length of B, and returns `sigmoid(θ)`. Its third
    term, the difficulty of each instruction, is known for its own 805 prompts only and is left out. A tie is an
    outcome of one half.

    One more observation of half a win and half a loss bears on φ alone: the log-F(1, 1) prior of Greenland &
    Mansournia (2015, Statistics in Medicine 34:3133), median 0 and 95 % of it within ±6.5. It keeps φ finite where
    length decides (nearly) everything. θ, which is what is asked for, is not penalised.

    Three cases have no such fit. Outcomes that are all alike: their value, since no length changed it. Lengths that
    decide every comparison (the longer always wins, or the shorter): the likelihood rises with φ for ever and is the
    same for any θ, so the win-rate of the comparisons of equal length, or one half without any. None where no
    comparison has both lengths, or one model's response is the longer in every one: its lengths cannot be told from
    the model itself. Raises `ValueError` for unequal shapes and infinite numbers.
    """
    won, difference = _matrix(outcomes), _matrix(lengths_a) - _matrix(lengths_b)
    if won.shape != difference.shape:
        raise ValueError(f"outcomes have shape {won.shape}, lengths {difference.shape}")
    known = ~np.isnan(won) & ~np.isnan(difference)
    won, difference = won[known], difference[known]
    if not len(won) or difference.min() > 0 or difference.max() < 0:
        return None
    if np.ptp(won) == 0 or np.ptp(difference) == 0:
        return float(won.mean())
    decided, longer = won[difference != 0], difference[difference != 0] > 0
    if (decided == longer).all() or (decided == ~longer).all():
        return float(won[difference == 0].mean()) if (difference == 0).any() else 0.5
    slope = np.tanh(difference / difference.std(ddof=1))
    design = np.column_stack([np.append(np.ones_like(slope), 0.0), np.append(slope, 1.0)])
    fit = GLM(np.append(won, 0.5), design, family=Binomial()).fit(maxiter=200, tol=1e-10, tol_criterion="params")
    return float(expit(fit.params[0]))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several (Holm 1979): those below α hold together at level α."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _matrix(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"expected (prompts, rounds) or (prompts,), found shape {array.shape}")
    if np.isinf(array).any():
        raise ValueError("expected finite numbers, or NaN where there is none, found an infinite one")
    return array.reshape(len(array), -1)


def prompt_interval(sums: Floats, counts: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13), all of a prompt's rounds together.

    `sums` and `counts` `(prompts,)`: of each prompt's outcomes. It is Hesterberg's expanded percentile interval
    (2015, The American Statistician 69:371-386): the plain one is too narrow with few prompts, by (n - 1) / n in
    variance and by a normal quantile where Student's is due, so percentiles further out are read off.
    """
    means = sums / counts
    if np.ptp(means) < 1e-12:
        # Every prompt came out alike, so resampling sees no spread. What n prompts did not show may still be up
        # to 1 - (alpha/2)^(1/n) of all prompts (Clopper & Pearson 1934), and as far off as a win or a loss.
        unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(means))
        value = float(means[0])
        return value * (1 - unseen), value + unseen * (1 - value)
    n = len(means)
    tail = norm.cdf(student.ppf((1 - CONFIDENCE) / 2, n - 1) * np.sqrt(n / (n - 1)))
    result = bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _p_value(sums: Floats, counts: Floats) -> float:
    """Exact two-sided sign-flip test (Fisher 1935; Pitman 1937): how likely is a win-rate this far from one half?

    Under the null, swapping the two models' names in any prompt, its rounds together, is as likely as not. The
    statistic is the sum over prompts of wins - losses, which is what the win-rate is made of. With one round and no
    ties this is the sign test; ties drop out as they do there; rounds that agree with each other add no certainty.
    Prompts of equal |wins - losses| form a binomial, so the whole distribution is a convolution of a few of these:
    exact for any number of prompts, with no seed and no smallest value of 1 / resamples, which Holm's adjustment
    would multiply. (`scipy.stats.permutation_test` is exact up to about 13 prompts and draws beyond.)
    """
    excess = np.rint(2 * sums - counts).astype(np.int64)  # wins - losses
    sizes, prompts = np.unique(np.abs(excess[excess != 0]), return_counts=True)
    chance: Floats = np.ones(1)  # of each sum of the sizes that have a positive sign, from 0 to their total
    for size, n in zip(sizes, prompts, strict=True):
        spread = np.zeros(size * n + 1)
        spread[::size] = binom.pmf(np.arange(n + 1), n, 0.5)
        chance = np.convolve(chance, spread).astype(np.float64)
    total, seen = int(np.abs(excess).sum()), abs(int(excess.sum()))
    return min(1.0, 2 * float(chance[(total + seen) // 2 :].sum()))
