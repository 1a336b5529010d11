"""Win-rates between two models' responses to the same prompts: interval, test, and control for length.

A *comparison* is one prompt in one round, both models' responses scored by the same reward model. Its *outcome* is
1 where A wins, 0 where B does, 0.5 for a tie; a judge that gives a probability of A being the better has outcomes
between. Arrays are `(prompts, rounds)`, or `(prompts,)` for one round, with NaN where there is none. Responses to one
prompt are not independent, so the unit of all that is said about certainty is the prompt with its rounds together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import bootstrap, norm
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from orpo_ray.statistics.sign_flip import sign_flip_test

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
TIE = 1e-4
"""Rewards no further apart than this are a tie: a packed reward equals that of a plain forward up to this bound."""


@dataclass(frozen=True)
class WinRate:
    """How often A's response was found the better, over comparisons (prompt and round where both have a score)."""

    wins: int
    """Outcomes above one half."""
    ties: int
    losses: int
    win_rate: float
    """The mean outcome: (wins + ties / 2) / n where none lies between."""
    sd: float | None
    """Standard deviation (ddof 1) of the rounds' win-rates, as in the paper's tables; None with one round."""
    ci95: tuple[float, float]
    """Bootstrap over prompts."""
    p_value: float
    """Two-sided, of a win-rate of one half, by prompt; see `sign_flip_test`."""
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
    a, b = matrix(scores_a), matrix(scores_b)
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
    return mean_outcome(outcomes(scores_a, scores_b, tie=tie), resamples=resamples, seed=seed)


def mean_outcome(outcomes: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> WinRate:
    """`win_rate` of outcomes that are there already, between 0 and 1.

    Raises `ValueError` for others, more than two dimensions, and where there is no comparison.
    """
    won = checked_outcomes(outcomes)
    compared = ~np.isnan(won)
    if not compared.any():
        raise ValueError("no prompt has a score of both models")
    rounds = np.nanmean(won[:, compared.any(axis=0)], axis=0)
    answered = won[compared.any(axis=1)]
    sums, counts = np.nansum(answered, axis=1), (~np.isnan(answered)).sum(axis=1).astype(np.float64)
    return WinRate(
        wins=int((won > 0.5).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won < 0.5).sum()),
        win_rate=float(sums.sum() / counts.sum()),
        sd=float(rounds.std(ddof=1)) if len(rounds) > 1 else None,
        ci95=prompt_interval(sums, counts, resamples, seed),
        p_value=sign_flip_test(2 * sums - counts),
        rounds=tuple(rounds.tolist()),
        prompts=len(answered),
    )


@dataclass(frozen=True)
class LengthControl:
    """A's win-rate at equal lengths, or why it cannot be told."""

    win_rate: float | None
    ci95: tuple[float, float] | None
    """Bootstrap over prompts. It says how far other prompts would move the number, not how far the penalty does."""
    unknown: str | None
    """In words that fit behind "cannot be told:"; None where there is a number."""

    def reverse(self) -> LengthControl:
        """B against A."""
        return LengthControl(
            None if self.win_rate is None else 1 - self.win_rate,
            None if self.ci95 is None else (1 - self.ci95[1], 1 - self.ci95[0]),
            self.unknown,
        )


LENGTH_PENALTY = 1 / 16, 50.0
"""Weight of the prior on the liking for length, as a part of the prompts, and at most: docs/evaluation.md says why."""
RULE_OF_THREE = 3 - 1e-9  # rounds count as parts of a prompt, whose sum is rounded
"""Prompts: of fewer, another draw of as many prompts has none at all in e^-3 = 5 % of cases or more."""


def length_controlled(outcomes: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike) -> float | None:
    """`length_control`'s win-rate alone, without the time that its interval takes."""
    return length_control(outcomes, lengths_a, lengths_b, resamples=0).win_rate


def length_control(
    outcomes: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    penalty: tuple[float, float] = LENGTH_PENALTY,
    resamples: int = 1000,
    seed: int = 0,
) -> LengthControl:
    """A's win-rate at equal lengths: what is left once the judge's liking for length is taken out.

    `outcomes` as everywhere here; lengths, in characters since models count tokens differently, have the same shape
    with NaN where a response is missing. In the form of Dubois et al. (arXiv 2404.04475) it fits
    `P(A wins) = sigmoid(θ + φ tanh(Δ / sd(Δ)))`, Δ = length of A - length of B, and gives `sigmoid(θ)`. It is not
    AlpacaEval's number: the difficulty of an instruction, known for 805 prompts only, and the comparisons with gamed
    models are left out.

    What stands in for these is a prior on φ alone, log-F(m, m) of Greenland & Mansournia (2015, Statistics in Medicine
    34:3133): m more observations, half of them wins, at φ. `penalty`: m as a part of the prompts, and at most (times
    the comparisons of a prompt, so that repeating all of them changes nothing). Where one model is nearly always
    the longer, φ is told by few prompts and θ with it; the prior then keeps the number near the win-rate.

    It cannot be told where fewer than three prompts say what length does: where one model's response is the longer to
    all others, or where to all others the longer response wins, or the shorter one, whoever gave it (unless half of all
    are of equal length). `ci95` is None with `resamples` 0. Raises `ValueError` for unequal shapes, infinite numbers,
    and outcomes not from 0 to 1.
    """
    won, difference = checked_outcomes(outcomes), matrix(lengths_a) - matrix(lengths_b)
    if won.shape != difference.shape:
        raise ValueError(f"outcomes have shape {won.shape}, lengths {difference.shape}")
    known = ~np.isnan(won) & ~np.isnan(difference)
    counts = known.sum(axis=1)
    prompt = np.repeat(np.arange(np.count_nonzero(counts)), counts[counts > 0])  # of each comparison
    share = 1 / np.repeat(counts, counts)  # of its prompt
    won, difference = won[known], difference[known]
    unknown = _untold(won, difference, share)
    if unknown:
        return LengthControl(None, None, unknown)
    prompts = int(prompt[-1]) + 1
    if np.ptp(won) == 0 or not difference.any():  # no length changed anything
        sums, numbers = (np.bincount(prompt, each).astype(np.float64) for each in (won, np.ones_like(won)))
        interval = prompt_interval(sums, numbers, resamples, seed) if resamples else None
        return LengthControl(float(won.mean()), interval, None)
    slope = np.tanh(difference / difference.std(ddof=1))
    part, most = penalty
    prior = min(part * prompts, most) * len(won) / prompts
    fitted = _fit_length(won, slope, np.ones((1, len(won))), prior, (0.0, 0.0))
    start = float(fitted[0, 0]), float(fitted[1, 0])
    rates = [
        expit(_fit_length(np.append(won, [1, 0]), np.append(slope, [0, 0]), weights, prior, start)[0])
        for weights in _resampled(prompt, resamples, seed)
    ]
    tail = expanded_tail(prompts)
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail]) if rates else (np.nan, np.nan)
    return LengthControl(float(expit(start[0])), (float(low), float(high)) if rates else None, None)


def _untold(won: Floats, difference: Floats, share: Floats) -> str | None:
    """Why there is no win-rate at equal lengths; all arguments `(comparisons,)`."""
    prompts = share.sum()
    if not len(won):
        return "no comparison has both lengths"
    if not difference.any():
        return None
    other_side = min(share[difference >= 0].sum(), share[difference <= 0].sum())
    if other_side < RULE_OF_THREE:
        but = f"all but {other_side:.3g} of {prompts:,.0f}" if other_side else f"all {prompts:,.0f}"
        return f"one model gave the longer response to {but} prompts"
    apart = difference != 0
    # How far each comparison of unlike lengths speaks against a judge of length alone.
    longer_lost = np.where(difference > 0, 1 - won, won)[apart]
    against = {"longer": share[apart] @ longer_lost, "shorter": share[apart] @ (1 - longer_lost)}
    which = min(against, key=against.__getitem__)
    unlike = share[apart].sum()
    if against[which] < RULE_OF_THREE and unlike > prompts / 2:
        return (
            f"the {which} response won in all but {against[which]:.3g} of {unlike:,.0f} prompts with unlike lengths, "
            "whoever gave it"
        )
    return None


def _fit_length(won: Floats, slope: Floats, weights: Floats, prior: float, start: tuple[float, float]) -> Floats:
    """θ and φ `(2, fits)` by Newton's method from `start`; `weights (fits, comparisons)`, the rest `(comparisons,)`."""
    theta, phi = np.full(len(weights), start[0]), np.full(len(weights), start[1])
    powers = np.stack([np.ones_like(slope), slope, slope**2], axis=1)
    wins = weights @ (won[:, None] * powers[:, :2])
    for _ in range(100):
        chance = expit(theta[:, None] + phi[:, None] * slope)
        expected = weights * chance
        at_prior = expit(phi)
        gradient = (wins - expected @ powers[:, :2]).T
        gradient[1] += prior * (0.5 - at_prior)
        a, b, c = (expected * (1 - chance) @ powers).T + 1e-12
        c += prior * at_prior * (1 - at_prior)
        step = np.array([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / (a * c - b * b)
        step *= np.minimum(1, 2 / np.maximum(np.abs(step).max(axis=0), 1e-300))  # none so long as to overshoot for ever
        before, (theta, phi) = theta, np.array([theta, phi]) + step
        if max(np.abs(expit(theta) - expit(before)).max(), (np.abs(step[1]) / (1 + np.abs(phi))).max()) < 1e-5:
            break
    return np.array([theta, phi])


def _resampled(prompt: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample of the prompts holds each comparison, `(some resamples, comparisons + 2)` at a time.

    The last two are half a prompt won and half a one lost at equal lengths, drawn from Gamma(1/2) as for ratings: where
    hardly a prompt was won, or lost, resampling alone sees too little spread.
    """
    rng = np.random.default_rng(seed)
    prompts = int(prompt[-1]) + 1
    at_once = max(1, 200_000 // len(prompt))
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(prompts, size=(rows, prompts)) + prompts * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * prompts).reshape(rows, prompts)
        halves = rng.standard_gamma(0.5, (rows, 2)) * len(prompt) / prompts
        yield np.concatenate([times[:, prompt], halves], axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several (Holm 1979): those below α hold together at level α."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def checked_outcomes(outcomes: ArrayLike) -> Floats:
    """`(prompts, rounds)`. Raises `ValueError` where one is neither from 0 to 1 nor NaN."""
    won = matrix(outcomes)
    if (won < 0).any() or (won > 1).any():
        raise ValueError("expected outcomes from 0 to 1, found one beyond")
    return won


def matrix(values: ArrayLike) -> Floats:
    """`(prompts, rounds)` of either shape. Raises `ValueError` for another, or an infinite number."""
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
    tail = expanded_tail(n)
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


def expanded_tail(prompts: int) -> float:
    """The quantile of a bootstrap that stands for 2.5 %, by Hesterberg's expanded percentiles."""
    quantile = student.ppf((1 - CONFIDENCE) / 2, prompts - 1) * np.sqrt(prompts / (prompts - 1))
    return float(norm.cdf(quantile))
