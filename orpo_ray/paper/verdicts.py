"""Whether what was measured agrees with what *ORPO* printed, told from intervals and from nothing else.

A verdict is one of four words with a sentence of the numbers behind it:

- `agrees`, `differs`: the interval (95 %, over training seeds where there are several) lies on the paper's side, or on
  the other;
- `cannot tell`: the interval holds both, or one run's means are all there is;
- `not run`: there is no interval, and why.

What agrees or differs is who wins, and where curves go. The numbers themselves need not be the same with other models
or data: whether the paper's lies in our interval is told beside, by `holds`. Each interval is for itself; of twenty
verdicts one may be wrong by chance.

Every function takes `None`, with `why_not`, for what was not run. Where values are given per seed, all arguments of one
call have the same seeds in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, permutation_test

from orpo_ray.paper.published import DIVERSITY, FIGURE_3, FIGURE_7, FIGURE_9, Curve, RewardWinRate
from orpo_ray.report.numbers import number, percent
from orpo_ray.statistics.seeds import Interval, of_means, over_seeds

Floats = NDArray[np.float64]

EVEN = 0.1
"""A contest that the paper leaves open agrees with an interval that strays no further from one half than this: one that
holds anything whatever would not be evidence of a draw."""
TREND = 0.05
"""The p-value of a trend over λ that is one."""
_ROUNDING = 1e-9


class Word(StrEnum):
    AGREES = "agrees"
    DIFFERS = "differs"
    CANNOT_TELL = "cannot tell"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Verdict:
    word: Word
    why: str
    """A sentence, with the numbers."""


@dataclass(frozen=True)
class Claim:
    """One thing that a table or figure of the paper says, and what becomes of it here."""

    text: str
    """A sentence without numbers: `ORPO raises the log-prob of the chosen responses.`"""
    verdict: Verdict
    ours: Interval | None = None
    """Of the difference that decides."""


@dataclass(frozen=True)
class Ends:
    """A number of held-out pairs, such as the chosen responses' log-prob, as training begins and as it ends.

    Each holds one entry per training seed: the mean over the pairs, or an array `(pairs,)` with every pair's own value
    (NaN where there is none; row i the same pair everywhere). Only with the latter can one seed tell anything. Raises
    `ValueError` where start and end have not as many seeds.
    """

    start: Sequence[ArrayLike]
    end: Sequence[ArrayLike]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.end) or not len(self.start):
            raise ValueError(
                f"expected the start and the end of each seed, found {len(self.start)} and {len(self.end)}"
            )

    @property
    def change(self) -> list[Floats]:
        """End less start, of each seed."""
        return _less(self.end, self.start)


@dataclass(frozen=True)
class Weighted:
    """An ORPO run's log-probs at one λ, over seeds."""

    weight: float
    chosen: Ends
    rejected: Ends


def overall(claims: Sequence[Claim]) -> Verdict:
    """Of a whole figure: what differs decides, then what cannot be told, then what was not run."""
    if not claims:
        raise ValueError("there is no claim")
    order = (Word.DIFFERS, Word.CANNOT_TELL, Word.NOT_RUN, Word.AGREES)
    word = min((claim.verdict.word for claim in claims), key=order.index)
    same = list(dict.fromkeys(claim.verdict.why for claim in claims if claim.verdict.word == word))
    return Verdict(word, " ".join(same))


# Tables


def holds(ours: Interval, printed: float) -> bool:
    """Whether the paper's number lies in our interval, its ends included."""
    return ours.beyond(printed) == 0


def contest(ours: Interval | None, paper: RewardWinRate, why_not: str = "") -> Verdict:
    """Who wins, ORPO or the other (Tables 2 and 3); `ours` of ORPO's win-rate, as `seeds.over_seeds` gives it.

    Ours is told apart from one half by its interval, the paper's where it is more than two standard deviations of its
    rounds away. Where both are: the side decides. Where only the paper's is: cannot tell. Where the paper's is not:
    ours agrees if it meets the paper's band of two standard deviations and stays within `EVEN` of one half, differs if
    it leaves out both one half and the band, and cannot tell otherwise.
    """
    if ours is None:
        return _not_run(why_not)
    shown = f"Ours, {_win_rate(ours)}"
    printed = f"the paper's, {percent(paper.win_rate, 1)} (sd of rounds {100 * paper.sd:.2f})"
    side, sides = ours.beyond(0.5), {1: "above", -1: "below"}
    apart = paper.win_rate - 0.5
    if abs(apart) > 2 * paper.sd + _ROUNDING:
        expected = 1 if apart > 0 else -1
        if side == 0:
            return Verdict(Word.CANNOT_TELL, f"{shown}, holds 50%; {printed}, is {sides[expected]} it.")
        if side == expected:
            return Verdict(Word.AGREES, f"{shown}, and {printed}, are both {sides[side]} 50%.")
        return Verdict(Word.DIFFERS, f"{shown}, is {sides[side]} 50%; {printed}, is {sides[expected]} it.")
    band = f"{printed}, leaves open who wins"
    low, high = paper.win_rate - 2 * paper.sd, paper.win_rate + 2 * paper.sd
    meets = ours.low <= high + _ROUNDING and ours.high >= low - _ROUNDING
    if side and not meets:
        return Verdict(Word.DIFFERS, f"{shown}, is {sides[side]} 50%; {band}.")
    if meets and max(0.5 - ours.low, ours.high - 0.5) <= EVEN + _ROUNDING:
        return Verdict(Word.AGREES, f"{shown}, is within {100 * EVEN:.0f} points of 50%; {band}.")
    return Verdict(Word.CANNOT_TELL, f"{shown}, may be more than {100 * EVEN:.0f} points from 50%; {band}.")


def left_open(verdict: Verdict, doubt: str) -> Verdict:
    """`verdict` by a judge, and what is left of it where there is a `doubt`, a sentence, of whether that one knows."""
    if not doubt or verdict.word not in {Word.AGREES, Word.DIFFERS}:
        return verdict
    return Verdict(Word.CANNOT_TELL, f"{verdict.why} {doubt}")


def same_number(ours: Interval | None, printed: float, why_not: str = "") -> Verdict:
    """Whether a number is the paper's, of rows whose model and benchmark are the paper's own (Tables 1 and 6)."""
    if ours is None:
        return _not_run(why_not)
    word = Word.AGREES if holds(ours, printed) else Word.DIFFERS
    inside = "lies in" if word == Word.AGREES else "is outside"
    return Verdict(word, f"The paper's {printed:.4g} {inside} our interval, {_signed(ours)}.")


def diversity(
    per_input: tuple[Sequence[float], Sequence[float]] | None,
    across_input: tuple[Sequence[float], Sequence[float]] | None,
    why_not: str = "",
) -> tuple[Claim, Claim]:
    """Table 4, of ORPO and DPO: each a pair of cosines per seed, `(orpo, dpo)`."""
    return (
        _difference(
            "ORPO's responses to one instruction are more alike than DPO's.", "Cosine per input, ORPO's less DPO's",
            _less(*per_input) if per_input else None, 1, _table_4("per_input"), why_not,
        ),
        _difference(
            "ORPO's responses to different instructions are less alike than DPO's.",
            "Cosine across inputs, ORPO's less DPO's",
            _less(*across_input) if across_input else None, -1,
            _table_4("across_input"), why_not,
        ),
    )  # fmt: skip


def _table_4(name: str) -> str:
    cosine = {(row.model, row.method): getattr(row, name) for row in DIVERSITY}
    apart = {model: cosine[model, "orpo"] - cosine[model, "dpo"] for model, _ in cosine}
    return "in the paper " + " and ".join(f"{number(value)} ({model})" for model, value in apart.items())


# Figures


def figure_3(chosen: Ends | None, rejected: Ends | None, why_not: str = "") -> tuple[Claim, Claim]:
    """SFT on the chosen responses alone: mean log-probs of both responses of held-out pairs."""
    return (
        _moves("SFT on chosen responses raises their log-prob.", "chosen", chosen, FIGURE_3.chosen, why_not),
        _moves("It raises that of the rejected responses as well.", "rejected", rejected, FIGURE_3.rejected, why_not),
    )


def figure_7(
    chosen: Ends | None, rejected: Ends | None, log_odds_ratio: Ends | None, why_not: str = ""
) -> tuple[Claim, Claim, Claim]:
    """ORPO's training: the log odds ratio and the log-probs of held-out pairs."""
    ratio = FIGURE_7.log_odds_ratio
    assert ratio
    return (
        _moves("ORPO's log odds ratio grows.", "log odds ratio", log_odds_ratio, ratio, why_not),
        _moves("The rejected responses' log-prob falls.", "rejected", rejected, FIGURE_7.rejected, why_not),
        _moves("The chosen responses' log-prob rises.", "chosen", chosen, FIGURE_7.chosen, why_not),
    )


def figure_8(probability_ratio: Ends | None, odds_ratio: Ends | None, why_not: str = "") -> tuple[Claim]:
    """The rejected responses' log-prob under training with the probability ratio and with the odds ratio (ORPO)."""
    lower = None
    if probability_ratio and odds_ratio:
        lower = _less(probability_ratio.change, odds_ratio.change)
    return (
        _difference(
            "The probability ratio pushes the rejected responses' log-prob further down than the odds ratio does.",
            "Change of the rejected log-prob, the probability ratio's less the odds ratio's", lower, -1,
            "in the paper below 0, without a number", why_not,
        ),
    )  # fmt: skip


def figure_9(runs: Sequence[Weighted], why_not: str = "") -> tuple[Claim, Claim]:
    """ORPO by λ: where the rejected responses' log-prob ends, and how far the chosen's is above it there.

    With several seeds, or every pair's values, the largest λ is compared with the smallest, each given once; the
    paper's own ends do not fall from every λ to the next. With means of one seed: a trend over all runs, by
    permutations of Kendall's τ, which five different λ can pass and four cannot.
    """
    ordered = sorted(runs, key=lambda run: run.weight)
    rejected = [[np.asarray(value, dtype=np.float64) for value in run.rejected.end] for run in ordered]
    apart = [_less(run.chosen.end, run.rejected.end) for run in ordered]
    ends = [curves.rejected.end for curves in FIGURE_9]
    wide = [curves.chosen.end - curves.rejected.end for curves in FIGURE_9]
    weights = [run.weight for run in ordered]
    return (
        _by_weight(
            "The larger λ, the lower the rejected responses' log-prob ends.", "rejected log-prob at the end",
            weights, rejected, -1, ends, why_not,
        ),
        _by_weight(
            "The larger λ, the further apart chosen and rejected end.", "chosen less rejected at the end",
            weights, apart, 1, wide, why_not,
        ),
    )  # fmt: skip


def mean_reward(
    orpo: Sequence[ArrayLike] | None,
    other: Sequence[ArrayLike] | None,
    against: str,
    paper: RewardWinRate,
    why_not: str = "",
) -> Claim:
    """Figures 5 and 11: ORPO's mean reward against that of the method named `against`, of the same judge and prompts.

    Rewards of each seed, `(prompts,)` or `(prompts, rounds)`, NaN where there is none. The figures print no number, so
    the side is that of the paper's win-rate between the two.
    """
    tells = abs(paper.win_rate - 0.5) > 2 * paper.sd + _ROUNDING
    side = 1 if paper.win_rate > 0.5 else -1
    text = f"ORPO's mean reward is {'above' if side > 0 else 'below'} {against}'s."
    if not tells:
        text = f"The paper leaves open whether ORPO's mean reward is above or below {against}'s."
    apart = _less(orpo, other) if orpo is not None and other is not None else None
    printed = f"the paper's win-rate is {percent(paper.win_rate, 1)}"
    claim = _difference(text, f"Mean reward, ORPO's less {against}'s", apart, side, printed, why_not)
    if tells or claim.ours is None:
        return claim
    open_ = f"Mean reward, ORPO's less {against}'s: {_signed(claim.ours)}; {printed}, which leaves open who wins."
    return Claim(text, Verdict(Word.CANNOT_TELL, open_), claim.ours)


# Of all of them


def interval(values: Sequence[ArrayLike]) -> Interval | None:
    """Of one mean, or one array `(pairs,)` or `(prompts, rounds)`, per seed; None of the mean of a single seed."""
    if np.ndim(values[0]) == 0:
        return of_means([float(np.asarray(value)) for value in values])
    return over_seeds(values, bounds=None)


def _less(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> list[Floats]:
    if len(a) != len(b):
        raise ValueError(f"expected the same seeds of both, found {len(a)} and {len(b)}")
    return [np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64) for x, y in zip(a, b, strict=True)]


def _moves(text: str, name: str, ends: Ends | None, paper: Curve, why_not: str) -> Claim:
    side = 1 if paper.end > paper.start else -1
    stations = [value for value in (paper.start, paper.lowest, paper.end) if value is not None]
    course = "in the paper " + " → ".join(number(value, 2) for value in stations)
    if ends is None:
        return Claim(text, _not_run(why_not))
    first, last = (
        np.mean([np.nanmean(np.asarray(value, dtype=np.float64)) for value in values])
        for values in (ends.start, ends.end)
    )
    label = f"{name[0].upper()}{name[1:]} {number(float(first), 2)} → {number(float(last), 2)}, a change"
    return _difference(text, label, ends.change, side, course, why_not)


def _difference(
    text: str, label: str, values: Sequence[ArrayLike] | None, side: int, paper: str, why_not: str
) -> Claim:
    """Of a claim that `values`, one entry per seed, are on one `side` of 0 in the mean."""
    if not values:
        return Claim(text, _not_run(why_not))
    ours = interval(values)
    if ours is None:
        mean = number(float(np.asarray(values[0])))
        return Claim(text, Verdict(Word.CANNOT_TELL, f"{label}: {mean} in one run, which tells no interval; {paper}."))
    found = ours.beyond(0)
    word = Word.CANNOT_TELL if found == 0 else Word.AGREES if found == side else Word.DIFFERS
    return Claim(text, Verdict(word, f"{label}: {_signed(ours)}; {paper}."), ours)


def _by_weight(
    text: str,
    label: str,
    weights: Sequence[float],
    values: Sequence[Sequence[Floats]],
    side: int,
    paper: Sequence[float],
    why_not: str,
) -> Claim:
    """`values` of each weight in rising order, one entry per seed."""
    if not weights:
        return Claim(text, _not_run(why_not))
    printed = ", ".join(f"{number(end, 2)} at {curves.weight:g}" for end, curves in zip(paper, FIGURE_9, strict=True))
    course = f"in the paper {printed}"
    if weights[0] == weights[-1]:
        return Claim(text, Verdict(Word.CANNOT_TELL, f"All runs have λ = {weights[0]:g}; {course}."))
    if np.ndim(values[0][0]) or len(values[0]) > 1:
        return _difference(
            text, f"{label[0].upper()}{label[1:]}, at λ = {weights[-1]:g} less at λ = {weights[0]:g}",
            _less(values[-1], values[0]), side, course, why_not,
        )  # fmt: skip
    means = [float(value[0]) for value in values]
    ours = ", ".join(f"{number(mean, 2)} at {weight:g}" for mean, weight in zip(means, weights, strict=True))
    if np.ptp(means) == 0:
        return Claim(text, Verdict(Word.CANNOT_TELL, f"The {label} is {ours}; {course}."))
    tau, p = _trend(np.array(weights), np.array(means))
    word = Word.CANNOT_TELL if p >= TREND else Word.AGREES if np.sign(tau) == side else Word.DIFFERS
    told = f"Kendall's τ {number(tau, 2)}, p = {p:.2g}, one run each"
    return Claim(text, Verdict(word, f"The {label} is {ours} ({told}); {course}."))


def _trend(weights: Floats, means: Floats) -> tuple[float, float]:
    """Kendall's τ-b and its two-sided p-value by permutations: all of them up to seven runs, where scipy's own is of
    large numbers as soon as a weight comes twice."""
    order = np.sign(np.subtract.outer(means, means))

    def concordant(x: Floats, axis: int = -1) -> Floats:
        x = np.moveaxis(x, axis, -1)
        return np.asarray((np.sign(x[..., :, None] - x[..., None, :]) * order).sum(axis=(-2, -1)))

    test = permutation_test(
        (weights,), concordant, permutation_type="pairings", vectorized=True, n_resamples=10_000, batch=1000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(kendalltau(weights, means).statistic), float(test.pvalue)


def _not_run(why_not: str) -> Verdict:
    return Verdict(Word.NOT_RUN, why_not or "It has not been run.")


def _seeds(ours: Interval) -> str:
    return "one run" if ours.one_run else f"{ours.seeds} seeds"


def _win_rate(ours: Interval) -> str:
    return f"{percent(ours.mean, 1)} ({percent(ours.low, 1)} to {percent(ours.high, 1)}, {_seeds(ours)})"


def _signed(ours: Interval) -> str:
    if not np.isfinite(ours.low):
        return f"{number(ours.mean)} ({_seeds(ours)}, all alike, which tells no interval)"
    return f"{number(ours.mean)} ({number(ours.low)} to {number(ours.high)}, {_seeds(ours)})"
