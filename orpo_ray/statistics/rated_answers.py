"""What a judge that rates single answers says of one model, and how sure that is.

Arrays are `(questions, rounds, turns, judgings)`: a judge may be asked the same again. A question's turns are not
independent, the second being asked with the first answer in view, so the question is the unit: all its turns, rounds
and judgings together.

The mean is over *ratings*, every one alike, as MT-Bench's own `show_result.py` takes it: what is called its score is
what it prints of the same ratings. Where answers were judged equally often that is the mean over answers, each the mean
of its judgings, as well. Where they were not, an answer with more ratings weighs more; `by_answer` says what the other
mean would be. The interval is that of a ratio of sums over questions, which holds in both cases.

Left out: other judges and other questions of other kinds. An interval over the 80 questions of MT-Bench says what
another 80 of their sort would give from the same judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.statistics.judge_noise import Noise, judge_noise
from orpo_ray.statistics.judged_pairs import told
from orpo_ray.statistics.winrate import prompt_interval

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
SCALE = 1.0, 10.0
"""The lowest and the highest rating of MT-Bench."""


@dataclass(frozen=True)
class MeanRating:
    mean: float
    """Over all ratings."""
    ci95: tuple[float, float]
    """Bootstrap over questions, all ratings of a question together."""
    by_answer: float
    """The mean over answers, each the mean of its ratings: another number where some have more of them than others."""
    ratings: int
    answers: int
    """Those that have a rating."""
    questions: int


@dataclass(frozen=True)
class Rated:
    score: MeanRating | None
    """MT-Bench's: all turns of all questions alike."""
    turns: tuple[MeanRating | None, ...]
    noise: Noise | None
    asked: tuple[int, ...]
    """Ratings asked for, by turn."""
    unreadable: tuple[int, ...]
    """Of these, those that had no rating to be read: left out, not counted as nought."""
    unjudged: tuple[int, ...]
    """Of these, those of which the judge said nothing, having no room or being refused by its server: left out, too."""
    unknown: dict[str, str]
    """Why `score`, `turn_1`, … or `noise` is None, in words that fit behind "cannot be told:"."""


def rated_answers(
    ratings: Floats,
    asked: Flags,
    unjudged: Flags | None = None,
    *,
    scale: tuple[float, float] = SCALE,
    resamples: int = 10_000,
    seed: int = 0,
) -> Rated:
    """`ratings (questions, rounds, turns, judgings)`, NaN where unreadable or not `asked`; `unjudged`: of those asked,
    where the judge said nothing (default: nowhere); `scale`: lowest and highest.

    `seed` draws the intervals' `resamples`; nothing else is random. Raises `ValueError` for other shapes, and ratings
    beyond the scale.
    """
    if ratings.ndim != 4 or ratings.shape != asked.shape:
        raise ValueError(f"expected two of (questions, rounds, turns, judgings), found {ratings.shape}, {asked.shape}")
    if not (np.isnan(ratings) | ((ratings >= scale[0]) & (ratings <= scale[1]))).all():
        raise ValueError(f"expected ratings from {scale[0]:g} to {scale[1]:g}, or NaN where there is none")
    given = np.where(asked, ratings, np.nan)
    silent = np.zeros_like(asked) if unjudged is None else asked & unjudged
    judged_again = given[asked.any(axis=3)]
    how: dict[str, Any] = {"scale": scale, "resamples": resamples, "seed": seed}
    unknown: dict[str, str] = {}
    return Rated(
        score=told("score", mean_rating(given, **how), unknown),
        turns=tuple(
            told(f"turn_{turn + 1}", mean_rating(given[:, :, [turn]], **how), unknown)
            for turn in range(ratings.shape[2])
        ),
        noise=told("noise", judge_noise(judged_again, judged_again), unknown),
        asked=tuple(asked.sum(axis=(0, 1, 3)).tolist()),
        unreadable=tuple((asked & np.isnan(ratings) & ~silent).sum(axis=(0, 1, 3)).tolist()),
        unjudged=tuple(silent.sum(axis=(0, 1, 3)).tolist()),
        unknown=unknown,
    )


def mean_rating(
    ratings: Floats, *, scale: tuple[float, float] = SCALE, resamples: int = 10_000, seed: int = 0
) -> MeanRating | str:
    """Of `(questions, rounds, turns, judgings)`, NaN where there is none. Where it cannot be told, why, in words."""
    there = ~np.isnan(ratings)
    if not there.any():
        return "no rating could be read"
    lowest, width = scale[0], scale[1] - scale[0]
    parts = np.where(there, (ratings - lowest) / width, 0.0).sum(axis=(1, 2, 3))  # of what lies between 0 and 1
    counts = there.sum(axis=(1, 2, 3)).astype(np.float64)
    low, high = prompt_interval(parts[counts > 0], counts[counts > 0], resamples, seed)
    times = there.sum(axis=3)
    answers = (np.where(there, ratings, 0.0).sum(axis=3) / np.maximum(times, 1))[times > 0]
    return MeanRating(
        mean=math.fsum(ratings[there]) / int(there.sum()),
        ci95=(lowest + width * low, lowest + width * high),
        by_answer=math.fsum(answers) / len(answers),
        ratings=int(there.sum()),
        answers=len(answers),
        questions=int((counts > 0).sum()),
    )
