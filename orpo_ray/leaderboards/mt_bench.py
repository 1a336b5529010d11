"""MT-Bench: how well a judge rates a model's answers, of two turns and eight categories (Zheng et al., arXiv
2306.05685).

A *rating* is 1 to 10. The score is the mean over all ratings of both turns, as FastChat's `show_result.py` takes it
(`statistics.rated_answers`, which an evaluation's page has it from, too). What could not be read as a rating, -1 in its
files, is left out there and here, and named here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Judgment, Number, Question
from orpo_ray.statistics.judge_noise import Noise, judge_noise
from orpo_ray.statistics.rated_answers import SCALE, MeanRating, mean_rating

Floats = NDArray[np.float64]
Part = TypeVar("Part")

LOWEST, HIGHEST = SCALE
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
class Place:
    """An answer, by its question and turn."""

    question_id: Number
    turn: int


@dataclass(frozen=True)
class Result:
    """Of one model by one judge."""

    model: str
    judge: str | None
    score: MeanRating | None
    """None where there is no rating."""
    turns: dict[int, MeanRating]
    categories: dict[str, MeanRating]
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
    turns = sorted({place.turn for place in places})
    if questions is not None:
        for place, judgment in places.items():
            question = questions.get(place.question_id)
            if question is None or place.turn > len(question.turns):
                what = f"question {place.question_id}" if question is None else f"turn {place.turn} of its question"
                raise UserError(f"{judgment.location}: is on {what}, which the prompts do not have")
        numbers = list(questions)
        wanted = [Place(each.question_id, i + 1) for each in questions.values() for i in range(len(each.turns))]
    else:
        numbers = sorted({place.question_id for place in places}, key=lambda each: (isinstance(each, str), each))
        wanted = [Place(number, turn) for number in numbers for turn in turns]
    category = _categories(kept, questions)
    ratings = _ratings(kept, numbers, turns)
    noise = judge_noise(*[ratings.reshape(-1, ratings.shape[3])] * 2)
    return Result(
        model=model,
        judge=judge,
        score=_told(ratings),
        turns=_means({turn: ratings[:, :, [i]] for i, turn in enumerate(turns)}),
        categories=_means(
            {
                name: ratings[[category[number] == name for number in numbers]]
                for name in dict.fromkeys(category.values())
            }
        ),
        unreadable=tuple(Place(each.question_id, each.turn) for each in kept if not _is_rating(each.score)),
        missing=tuple(place for place in wanted if place not in places),
        noise=None if isinstance(noise, str) else noise,
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


def _categories(judgments: Sequence[Judgment], questions: Mapping[Number, Question] | None) -> dict[Number, str]:
    """By question, in MT-Bench's order of categories where these are its own; empty where they are not known."""
    if questions is not None:
        named = {number: question.category for number, question in questions.items()}
    else:
        numbers = {each.question_id for each in judgments}
        own = range(FIRST, FIRST + 10 * len(CATEGORIES))
        if not all(number in own for number in numbers):
            return {}
        named = {number: CATEGORIES[(int(number) - FIRST) // 10] for number in numbers}
    order = {name: i for i, name in enumerate(CATEGORIES)}
    return dict(sorted(named.items(), key=lambda item: order.get(item[1], len(order))))


def _ratings(judgments: Sequence[Judgment], numbers: Sequence[Number], turns: Sequence[int]) -> Floats:
    """`(questions, 1, turns, judgings)`, as `statistics.rated_answers` has them; NaN where there is none.

    The judgings of an answer are in order of their time stamps, and of the file where they have none.
    """
    of_answer: dict[Place, list[float]] = defaultdict(list)
    for each in sorted(judgments, key=lambda each: each.tstamp or 0.0):
        score = each.score if each.score is not None and _is_rating(each.score) else np.nan
        of_answer[Place(each.question_id, each.turn)].append(score)
    ratings = np.full((len(numbers), 1, len(turns), max(map(len, of_answer.values()))), np.nan)
    row, column = ({name: i for i, name in enumerate(names)} for names in (numbers, turns))
    for place, scores in of_answer.items():
        ratings[row[place.question_id], 0, column[place.turn], : len(scores)] = scores
    return ratings


def _told(ratings: Floats) -> MeanRating | None:
    found = mean_rating(ratings)
    return None if isinstance(found, str) else found


def _means(parts: Mapping[Part, Floats]) -> dict[Part, MeanRating]:
    """Of those parts that have a rating."""
    found = {part: _told(ratings) for part, ratings in parts.items()}
    return {part: mean for part, mean in found.items() if mean is not None}
