"""What a judge that rates single answers says of one model, and how sure that is.

Arrays are `(questions, rounds, turns, judgings)`: a judge may be asked the same again. A question's turns are not
independent, the second being asked with the first answer in view, so the question is the unit: all its turns, rounds
and judgings together.

Left out: other judges and other questions of other kinds. An interval over the 80 questions of MT-Bench says what
another 80 of their sort would give from the same judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orpo_ray.statistics.judge_noise import Noise, judge_noise
from orpo_ray.statistics.judged_pairs import told
from orpo_ray.statistics.winrate import prompt_interval

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class MeanRating:
    mean: float
    """Over all answers that have a rating, each the mean of its judgings."""
    ci95: tuple[float, float]
    """Bootstrap over questions."""
    answers: int
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
    unknown: dict[str, str]
    """Why `score`, `turn_1`, … or `noise` is None, in words that fit behind "cannot be told:"."""


def rated_answers(
    ratings: Floats,
    asked: Flags,
    *,
    scale: tuple[float, float] = (1.0, 10.0),
    resamples: int = 10_000,
    seed: int = 0,
) -> Rated:
    """`ratings (questions, rounds, turns, judgings)`, NaN where unreadable or not `asked`; `scale`: lowest and highest.

    `seed` draws the intervals' `resamples`; nothing else is random. Raises `ValueError` for other shapes, and ratings
    beyond the scale.
    """
    if ratings.ndim != 4 or ratings.shape != asked.shape:
        raise ValueError(f"expected two of (questions, rounds, turns, judgings), found {ratings.shape}, {asked.shape}")
    if not (np.isnan(ratings) | ((ratings >= scale[0]) & (ratings <= scale[1]))).all():
        raise ValueError(f"expected ratings from {scale[0]:g} to {scale[1]:g}, or NaN where there is none")
    read = asked & ~np.isnan(ratings)
    times = read.sum(axis=3)
    answers = np.where(read, ratings, 0.0).sum(axis=3) / np.maximum(times, 1)  # (questions, rounds, turns)
    judged_again = np.where(asked, ratings, np.nan)[asked.any(axis=3)]
    unknown: dict[str, str] = {}
    return Rated(
        score=told("score", _mean_rating(answers, times > 0, scale, resamples, seed), unknown),
        turns=tuple(
            told(
                f"turn_{turn + 1}",
                _mean_rating(answers[..., turn, None], times[..., turn, None] > 0, scale, resamples, seed),
                unknown,
            )
            for turn in range(ratings.shape[2])
        ),
        noise=told("noise", judge_noise(judged_again, judged_again), unknown),
        asked=tuple(asked.sum(axis=(0, 1, 3)).tolist()),
        unreadable=tuple((asked & ~read).sum(axis=(0, 1, 3)).tolist()),
        unknown=unknown,
    )


def _mean_rating(
    answers: Floats, there: Flags, scale: tuple[float, float], resamples: int, seed: int
) -> MeanRating | str:
    """`answers` and whether they have a rating, both `(questions, rounds, turns)`."""
    counts = there.sum(axis=(1, 2))
    questions = counts > 0
    if not questions.any():
        return "no rating could be read"
    lowest, width = scale[0], scale[1] - scale[0]
    parts = np.where(there, (answers - lowest) / width, 0.0).sum(axis=(1, 2))[questions]
    counts = counts[questions].astype(np.float64)
    low, high = prompt_interval(parts, counts, resamples, seed)  # of what lies between 0 and 1
    return MeanRating(
        mean=float(answers[there].mean()),
        ci95=(lowest + width * low, lowest + width * high),
        answers=int(there.sum()),
        questions=len(counts),
    )
