"""Which answers of a record are trained on, and how they rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from orpo_ray.config.data import Reading
from orpo_ray.data.comparisons import dense_ranks
from orpo_ray.data.formats import Comparison, NoPreference, Turns
from orpo_ray.data.formats.comparison import has_text
from orpo_ray.data.records import Account, BadRecord

T = TypeVar("T")
R = TypeVar("R", int, float)


def select(comparison: Comparison, reading: Reading, account: Account) -> tuple[list[Turns], tuple[int, ...]]:
    """The answers to train on, from best to worst, and their ranks: 0 is best, equal ratings have equal ranks.

    Left out, and noted in `account`: answers without text, and those that repeat a better one. `reading` tells which of
    the others are wanted: `best_against_worst` the first of each; `labels` (KTO) those of the highest and of the lowest
    rating, which are then desirable (0) and undesirable (1). Raises `NoPreference` where nothing is left to learn,
    `BadRecord` for a label alone where answers are to be compared.
    """
    if comparison.labelled:
        if reading != "labels":
            raise BadRecord("one answer", "a label alone compares nothing; objective=kto trains on such records")
        [answer] = comparison.answers
        if not has_text(answer.turns):
            raise NoPreference("empty response")
        return [answer.turns], (int(answer.rating == 0),)
    answers = sorted(comparison.answers, key=lambda answer: -answer.rating)
    if answers[0].rating == answers[-1].rating:
        raise NoPreference("tie" if len(answers) > 1 else "one answer")
    spoken = [answer for answer in answers if has_text(answer.turns)]
    if len({answer.rating for answer in spoken}) < 2:
        raise NoPreference("empty response")
    turns, ratings = without_repeats([answer.turns for answer in spoken], [answer.rating for answer in spoken])
    kept = dense_ranks(ratings)
    if kept[-1] == 0:
        raise NoPreference("chosen = rejected")
    if len(spoken) < len(answers):
        account.noted["hold answers without text, which are left out"] += 1
    if len(turns) < len(spoken):
        account.noted["hold an answer twice, of which the better rated is read"] += 1
    if reading == "best_against_worst":
        return [turns[0], turns[kept.index(kept[-1])]], (0, 1)
    if reading == "labels" and kept[-1] > 1:
        account.noted["hold answers between the best and the worst, neither desirable nor not, which are left out"] += 1
        turns = [each for each, rank in zip(turns, kept, strict=True) if rank in (0, kept[-1])]
        kept = tuple(min(rank, 1) for rank in kept if rank in (0, kept[-1]))
    return turns, kept


def without_repeats(items: Sequence[T], ratings: Sequence[R]) -> tuple[list[T], list[R]]:
    """The first of equal `items`, and the ratings, or ranks, of those that are left."""
    kept: list[tuple[T, R]] = []
    for item, rating in zip(items, ratings, strict=True):
        if all(item != other for other, _ in kept):
            kept.append((item, rating))
    return [item for item, _ in kept], [rating for _, rating in kept]
