"""MT-Bench: how well a judge rates a model's answers, of two turns and eight categories (Zheng et al., arXiv
2306.05685).

A *rating* is 1 to 10. The score is the mean over all ratings of both turns, as FastChat's `show_result.py` takes it.
What could not be read as a rating, -1 in its files, is left out there and here, and named here.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Judgment, Number, Question
from orpo_ray.statistics.winrate import prompt_interval

LOWEST, HIGHEST = 1.0, 10.0
CATEGORIES = "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"
"""Ten questions of each in this order, numbered from 81."""
FIRST = 81
_BRACKETS = re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]"), re.compile(r"\[([0-9]+\.?[0-9]*)\]")


def rating(text: str) -> float | None:
    """What a judge's words rate an answer: the first `[[n]]` in them, or the first `[n]` where there is none.

    None where there is neither, or the number is not from 1 to 10.
    """
    for pattern in _BRACKETS:
        if found := pattern.search(text):
            value = float(found[1])
            return value if LOWEST <= value <= HIGHEST else None
    return None


@dataclass(frozen=True)
class Score:
    """A mean of ratings."""

    score: float
    ci95: tuple[float, float]
    """Bootstrap over questions, with all of a question's turns and judgings together."""
    ratings: int
    questions: int


@dataclass(frozen=True)
class Noise:
    """How far a judge is from itself, where it rated answers more than once."""

    answers: int
    """With two ratings or more."""
    sd: float
    """Of a rating around the mean of its answer's, all answers together (pooled, ddof 1 each)."""
    score_sd: float
    """Of a score that rates each answer once: sd / √answers rated. Two such scores differ by √2 times that."""


@dataclass(frozen=True)
class Place:
    """An answer, by its question and turn."""

    question_id: Number
    turn: int


@dataclass(frozen=True)
class Result:
    """Of one model by one judge."""

    model: str
    judge: str | None
    score: Score | None
    """None where there is no rating."""
    turns: dict[int, Score]
    categories: dict[str, Score]
    """In MT-Bench's order where they are its own, as the paper's Figure 10 has them; empty where they are not known."""
    unreadable: tuple[Place, ...]
    """Judgings without a rating, in order of the file; an answer may be there more than once."""
    missing: tuple[Place, ...]
    """Answers that nobody judged: of `questions`, or the turns that other questions have."""
    noise: Noise | None
    """None where no answer has two ratings."""
    copies: int
    """Judgments that were left out since they are the same record, time stamp included, as another."""


def results(judgments: Iterable[Judgment], questions: Sequence[Question] | None = None) -> list[Result]:
    """Of each model and judge, in order of their first judgments.

    `questions` say the categories, and which answers there should be; without them MT-Bench's own numbers, 81 to 160,
    have its categories. Raises `UserError` where a judgment is on none of them.
    """
    groups: dict[tuple[str, str | None], list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        groups[judgment.model, judgment.judge].append(judgment)
    known = None if questions is None else {question.question_id: question for question in questions}
    return [_result(model, judge, group, known) for (model, judge), group in groups.items()]


def _result(
    model: str, judge: str | None, judgments: Sequence[Judgment], questions: Mapping[Number, Question] | None
) -> Result:
    kept, copies = _without_copies(judgments)
    places = {Place(each.question_id, each.turn): each for each in kept}
    if questions is not None:
        for place, judgment in places.items():
            question = questions.get(place.question_id)
            if question is None or place.turn > len(question.turns):
                what = f"question {place.question_id}" if question is None else f"turn {place.turn} of its question"
                raise UserError(f"{judgment.location}: is on {what}, which the prompts do not have")
        wanted = [Place(each.question_id, i + 1) for each in questions.values() for i in range(len(each.turns))]
    else:
        turns = sorted({place.turn for place in places})
        wanted = [Place(number, turn) for number in dict.fromkeys(each.question_id for each in kept) for turn in turns]
    rated = [each for each in kept if _is_rating(each.score)]
    category = _categories(kept, questions)
    return Result(
        model=model,
        judge=judge,
        score=_score(rated),
        turns=_scores(rated, lambda each: each.turn, sorted({each.turn for each in rated})),
        categories=_scores(rated, lambda each: category[each.question_id], list(dict.fromkeys(category.values())))
        if category
        else {},
        unreadable=tuple(Place(each.question_id, each.turn) for each in kept if not _is_rating(each.score)),
        missing=tuple(place for place in wanted if place not in places),
        noise=_noise(rated),
        copies=copies,
    )


def _is_rating(score: float | None) -> bool:
    return score is not None and LOWEST <= score <= HIGHEST


def _without_copies(judgments: Sequence[Judgment]) -> tuple[list[Judgment], int]:
    """Judging again may end in the same words, but not at the same instant."""
    seen: Counter[Judgment] = Counter()
    kept = []
    for each in judgments:
        seen[each] += 1
        if each.tstamp is None or seen[each] == 1:
            kept.append(each)
    return kept, len(judgments) - len(kept)


def _categories(judgments: Sequence[Judgment], questions: Mapping[Number, Question] | None) -> dict[Number, str] | None:
    """By question, in MT-Bench's order of categories where these are its own."""
    if questions is not None:
        named = {number: question.category for number, question in questions.items()}
    else:
        numbers = {each.question_id for each in judgments}
        own = range(FIRST, FIRST + 10 * len(CATEGORIES))
        if not all(number in own for number in numbers):
            return None
        named = {number: CATEGORIES[(int(number) - FIRST) // 10] for number in numbers}
    order = {name: i for i, name in enumerate(CATEGORIES)}
    return dict(sorted(named.items(), key=lambda item: order.get(item[1], len(order))))


def _scores(rated: Sequence[Judgment], part: Callable[[Judgment], Any], parts: Iterable[Any]) -> dict[Any, Score]:
    found = {each: _score([judgment for judgment in rated if part(judgment) == each]) for each in parts}
    return {each: score for each, score in found.items() if score is not None}


def _score(rated: Sequence[Judgment]) -> Score | None:
    if not rated:
        return None
    by_question: dict[Number, list[float]] = defaultdict(list)
    for each in rated:
        assert each.score is not None
        by_question[each.question_id].append(each.score)
    span = HIGHEST - LOWEST  # the interval's own bounds are 0 and 1
    sums = np.array([sum((value - LOWEST) / span for value in values) for values in by_question.values()])
    counts = np.array([len(values) for values in by_question.values()], dtype=np.float64)
    low, high = prompt_interval(sums, counts, resamples=10_000, seed=0)
    mean = math.fsum(value for values in by_question.values() for value in values) / len(rated)
    return Score(mean, (LOWEST + span * low, LOWEST + span * high), len(rated), len(by_question))


def _noise(rated: Sequence[Judgment]) -> Noise | None:
    by_answer: dict[Place, list[float]] = defaultdict(list)
    for each in rated:
        assert each.score is not None
        by_answer[Place(each.question_id, each.turn)].append(each.score)
    again = [np.array(values) for values in by_answer.values() if len(values) > 1]
    if not again:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in again)
    sd = math.sqrt(squares / sum(len(values) - 1 for values in again))
    return Noise(len(again), sd, sd / math.sqrt(len(by_answer)))
