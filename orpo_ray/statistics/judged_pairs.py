"""What a judge that is shown two answers says of two models, and how sure that is.

A *verdict* is the probability that the answer shown first is the better one. It is of one prompt in one round, in one
*order* (0: A's answer is shown first, 1: B's), and of one *judging*: a judge may be asked the same again. Arrays are
`(prompts, rounds, 2, judgings)`.

What the first place is worth to a judge cancels in the mean of both orders. Where every prompt was shown in one order
that was drawn by chance, it cancels on average and widens the interval. Where one model was always shown first it is in
the win-rate, and nothing here can part the two. As everywhere in this package the unit of certainty is the prompt with
all that was asked about it; an interval over prompts holds a judge's noise already.

Left out: what else a judge may like beside the better answer, such as length (`winrate.length_control`) or its own
words, and whether verdicts that could not be read would have been like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orpo_ray.statistics.judge_noise import Noise, judge_noise
from orpo_ray.statistics.winrate import WinRate, mean_outcome, prompt_interval

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
T = TypeVar("T")

FEWEST = 10
"""Prompts in each order, of which position bias is told where each was shown in one: of three to seven,
as few as 85 % of simulated intervals held the truth."""


@dataclass(frozen=True)
class Verdicts:
    """Of one judge on one pair of models, A and B.

    Raises `ValueError` for other shapes than `(prompts, rounds, 2, judgings)` and for what is no probability.
    """

    first: Floats
    """The probability that the answer shown first is the better one; NaN where it was not asked or not readable. One
    that is there without having been asked, such as 0.5 of answers that are the same to the letter, counts in the
    win-rate and says nothing of the judge."""
    asked: Flags
    unjudged: Flags | None = None
    """Of those asked for, where the judge said nothing, having no room or being refused by its server; None: nowhere.
    The comparison is then left out, as where a verdict cannot be read."""

    def __post_init__(self) -> None:
        if self.first.ndim != 4 or self.first.shape[2] != 2 or self.first.shape != self.asked.shape:
            raise ValueError(
                f"expected two of (prompts, rounds, 2, judgings), found {self.first.shape} and {self.asked.shape}"
            )
        if self.unjudged is not None and (self.unjudged & (~self.asked | ~np.isnan(self.first))).any():
            raise ValueError("expected neither a verdict where nothing was judged, nor one that was not asked for")
        if not (np.isnan(self.first) | ((self.first >= 0) & (self.first <= 1))).all():
            raise ValueError("expected probabilities from 0 to 1, or NaN where there is none, found another")


@dataclass(frozen=True)
class PositionBias:
    bias: float
    """P(the answer shown first wins) - P(the one shown second wins): 1 where the first always wins, 0 where the place
    makes no difference, -1 where the second always wins."""
    ci95: tuple[float, float]
    """By prompts."""
    prompts: int
    both_orders: bool
    """Found from the same answers in both orders. Otherwise from a single order of each, by the difference between
    prompts that drew one and prompts that drew the other, and several times less sure."""


@dataclass(frozen=True)
class Consistency:
    """Of comparisons (prompt and round) that were read in both orders; a tie is a verdict of its own."""

    consistent: float
    """The share with the same verdict in both orders."""
    ci95: tuple[float, float]
    """Bootstrap over prompts."""
    first: float
    """The share where the answer shown first won in both orders."""
    second: float
    """The share where the one shown second did. What is left was a tie in one order alone."""
    comparisons: int


@dataclass(frozen=True)
class JudgedPair:
    win_rate: WinRate | None
    """Of A over B; see `outcomes_of_verdicts`."""
    position_bias: PositionBias | None
    consistency: Consistency | None
    noise: Noise | None
    """Of A's outcome in each order; its means are win-rates of A."""
    asked: tuple[int, int]
    """Verdicts asked for with A's answer first, and with B's."""
    unreadable: tuple[int, int]
    """Of these, those that had no verdict to be read."""
    unjudged: tuple[int, int]
    """Of these, those of which the judge said nothing, having no room or being refused by its server."""
    left_out: int
    """Comparisons without an outcome, since an order that was asked could not be read, or was not judged."""
    unknown: dict[str, str]
    """Why each of the numbers above that is None cannot be told, in words that fit behind "cannot be told:"."""


def judged_pair(verdicts: Verdicts, *, resamples: int = 10_000, seed: int = 0) -> JudgedPair:
    """All numbers of one pair. `seed` draws the intervals' `resamples`; nothing else is random."""
    outcomes = outcomes_of_verdicts(verdicts)
    asked, orders = verdicts.asked, (0, 1, 3)
    silent = np.zeros_like(asked) if verdicts.unjudged is None else verdicts.unjudged
    asked_for, missed, unsaid = (
        each.sum(axis=orders) for each in (asked, asked & np.isnan(verdicts.first) & ~silent, silent)
    )
    unknown: dict[str, str] = {}
    return JudgedPair(
        win_rate=told("win_rate", _win_rate(outcomes, asked, resamples, seed), unknown),
        position_bias=told("position_bias", position_bias(verdicts, resamples=resamples, seed=seed), unknown),
        consistency=told("consistency", consistency(verdicts, resamples=resamples, seed=seed), unknown),
        noise=told("noise", _noise(verdicts), unknown),
        asked=(int(asked_for[0]), int(asked_for[1])),
        unreadable=(int(missed[0]), int(missed[1])),
        unjudged=(int(unsaid[0]), int(unsaid[1])),
        left_out=int((asked.any(axis=(2, 3)) & np.isnan(outcomes)).sum()),
        unknown=unknown,
    )


def outcomes_of_verdicts(verdicts: Verdicts) -> Floats:
    """A against B, `(prompts, rounds)`, as `mean_outcome`, `agreement_of_outcomes` and `ratings_of_outcomes` take them.

    The mean of the orders, each the mean of its judgings. NaN where nothing could be read, and where both orders were
    asked but one could not be read at all: the other one alone would hold what its place was worth.
    """
    by_order, asked = _by_order(verdicts)
    missed = asked & np.isnan(by_order)
    outcomes = np.where(missed.any(axis=2), np.nan, _mean(by_order))
    # 0.7 in both orders is a tie, and so is 0.1 twice beside 0.9 twice, in whatever order their sum was rounded.
    return np.where(np.abs(outcomes - 0.5) < 1e-12, 0.5, outcomes)


def position_bias(verdicts: Verdicts, *, resamples: int = 10_000, seed: int = 0) -> PositionBias | str:
    """Where both orders were asked of every comparison, the mean over these of P(first) in both, less one.

    Otherwise, A's mean outcome where A was shown first less that where B was. If chance decided who, that is what the
    place makes, since nothing else differs between the two groups but by chance (Neyman 1923). Its interval is made of
    those of both means (Zou 2007, Psychological Methods 12:399-413), the prompts that are in both groups allowed for.

    Where it cannot be told, why, in words.
    """
    by_order, asked = _by_order(verdicts)
    read: Flags = asked & ~np.isnan(by_order)
    if not asked.any():
        return "nothing was asked"
    if not asked.any(axis=(0, 1)).all():
        return "the same model was always shown first, so what that is worth is in its win-rate"
    if (asked.all(axis=2) == asked.any(axis=2)).all():
        both = read[:, :, 0] & read[:, :, 1]
        if not both.any():
            return "no prompt could be read in both orders"
        first = (by_order[:, :, 0] + 1 - by_order[:, :, 1]) / 2
        share, (low, high) = _share(first, both, resamples, seed)
        return PositionBias(2 * share - 1, (2 * low - 1, 2 * high - 1), int(both.any(axis=1).sum()), both_orders=True)
    counts = read.sum(axis=1)  # (prompts, 2)
    fewest = int((counts > 0).sum(axis=0).min())
    if fewest < FEWEST:
        return f"each prompt was shown in one order, and only {fewest} could be read in one of the two"
    bias, ci95 = _difference(np.where(read, by_order, 0.0).sum(axis=1), counts, resamples, seed)
    return PositionBias(bias, ci95, int((counts.sum(axis=1) > 0).sum()), both_orders=False)


def consistency(verdicts: Verdicts, *, resamples: int = 10_000, seed: int = 0) -> Consistency | str:
    """Of verdicts in both orders (Zheng et al. 2023, arXiv 2306.05685, Table 2); a judge's noise lowers it too.

    An order that was judged several times has the verdict of its mean. Where it cannot be told, why, in words.
    """
    by_order, asked = _by_order(verdicts)
    if not (asked[:, :, 0] & asked[:, :, 1]).any():
        return "no prompt was shown in both orders"
    both = (asked & ~np.isnan(by_order)).all(axis=2)
    if not both.any():
        return "no prompt could be read in both orders"
    won = _winner(by_order)
    in_first, in_second = won[:, :, 0], -won[:, :, 1]  # 1 where the answer shown first won, in each order
    consistent, ci95 = _share(in_first == -in_second, both, resamples, seed)
    return Consistency(
        consistent=consistent,
        ci95=ci95,
        first=float(((in_first == 1) & (in_second == 1))[both].mean()),
        second=float(((in_first == -1) & (in_second == -1))[both].mean()),
        comparisons=int(both.sum()),
    )


def told(name: str, found: T | str, unknown: dict[str, str]) -> T | None:
    """A number, or None once it is noted in `unknown` why there is none."""
    if isinstance(found, str):
        unknown[name] = found
        return None
    return found


def _win_rate(outcomes: Floats, asked: Flags, resamples: int, seed: int) -> WinRate | str:
    if not np.isnan(outcomes).all():
        return mean_outcome(outcomes, resamples=resamples, seed=seed)
    if not asked.any():
        return "nothing was asked"
    return "no prompt could be read in every order that it was shown in"


def _noise(verdicts: Verdicts) -> Noise | str:
    asked = verdicts.asked.any(axis=3)
    values = np.where(verdicts.asked, _of_a(verdicts.first), np.nan)[asked]
    return judge_noise(values, _winner(values))


def _of_a(first: Floats) -> Floats:
    """A's outcomes, of the same shape."""
    return np.stack([first[:, :, 0], 1 - first[:, :, 1]], axis=2)


def _by_order(verdicts: Verdicts) -> tuple[Floats, Flags]:
    """A's outcome in each order, the mean of its judgings, and whether it was asked: both `(prompts, rounds, 2)`."""
    return _mean(_of_a(verdicts.first)), np.asarray(verdicts.asked.any(axis=3))


def _mean(values: Floats) -> Floats:
    """Over the last axis, of what is no NaN; NaN where all is."""
    there = ~np.isnan(values)
    counts = there.sum(axis=-1)
    return np.where(counts, np.where(there, values, 0.0).sum(axis=-1) / np.maximum(counts, 1), np.nan)


def _winner(outcomes: Floats) -> Floats:
    """1 for A, -1 for B, 0 for a tie, NaN where there is none."""
    return np.sign(np.round(outcomes - 0.5, 12))


def _share(values: Floats | Flags, there: Flags, resamples: int, seed: int) -> tuple[float, tuple[float, float]]:
    """The mean of what is `there`, from 0 to 1, and its interval over prompts; both `(prompts, rounds)`."""
    counts = there.sum(axis=1)
    sums, counts = np.where(there, values, 0.0).sum(axis=1)[counts > 0], counts[counts > 0].astype(np.float64)
    return float(sums.sum() / counts.sum()), prompt_interval(sums, counts, resamples, seed)


def _difference(
    sums: Floats, counts: NDArray[np.int64], resamples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Of the mean outcomes of two groups, `sums` and `counts (prompts, 2)`, with its interval from theirs."""
    sums, totals = sums.astype(np.float64), counts.sum(axis=0)
    means = sums.sum(axis=0) / totals
    (low_a, high_a), (low_b, high_b) = (
        prompt_interval(sums[there, i], counts[there, i].astype(np.float64), resamples, seed)
        for i, there in enumerate(counts.T > 0)
    )
    away = sums - means * counts  # of each prompt, whose outcomes in both orders are not independent
    spread = np.sqrt((away**2).sum(axis=0).prod())
    alike = float((away[:, 0] * away[:, 1]).sum() / spread) if spread > 1e-20 else 0.0  # rounding alone
    bias = float(means[0] - means[1])

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a + b * b - 2 * alike * a * b, 0.0)))

    low = bias - reach(means[0] - low_a, high_b - means[1])
    high = bias + reach(high_a - means[0], means[1] - low_b)
    return bias, (max(low, -1.0), min(high, 1.0))
