"""Which responses to a prompt an objective compares: from their ranks to rows of what it is given.

Ranks count from 0, the best, without gaps; responses of one rank are tied, and are never compared. Everywhere the
responses of a record stand from the best to the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rule = Literal["every_pair", "best_against_each", "best_against_worst", "labels"]
"""`labels`: nothing is compared, each response is judged by itself; rank 0 is desirable, 1 is not."""
Integers = NDArray[np.int64]


class Compared(NamedTuple):
    """Rows of an objective's input: comparisons, or single responses. Those of a record follow each other."""

    records: Integers
    """`(rows,)`: which of the records."""
    responses: Integers
    """`(rows, 2)`: numbers of the better and of the worse response; or `(rows, 1)`."""

    @property
    def columns(self) -> Integers:
        """`(rows, 3)` or `(rows, 2)`: prompt, better and worse as columns of a table of `(records, 1 + K)`."""
        return np.pad(self.responses + 1, ((0, 0), (1, 0)))

    def of(self, table: Integers) -> Integers:
        """The rows' own numbers, `(rows, 3)` or `(rows, 2)`, from a table of `(records, 1 + K)`."""
        return table[self.records[:, None], self.columns]

    def positions(self, counts: Integers) -> Integers:
        """The same as positions in the flat order `prompt, response 1, …, response K, prompt, …`.

        `counts (records,)`: responses of each record.
        """
        starts = np.cumsum(1 + counts) - (1 + counts)
        return starts[self.records][:, None] + self.columns

    @property
    def choices(self) -> Integers:
        """`(winners,)`: of how many rows each response is the better one, in the order of the rows."""
        winner = np.column_stack([self.records, self.responses[:, 0]])
        first = np.flatnonzero(np.r_[True, (winner[1:] != winner[:-1]).any(axis=1)][: len(winner)])
        return np.diff(np.r_[first, len(winner)])


def compared(ranks: NDArray[np.integer], rule: Rule) -> Compared:
    """What `rule` compares of records with these `ranks (records, K)`, ascending; -1 where one has fewer responses."""
    if rule == "labels":
        records, responses = np.nonzero(ranks >= 0)
        return Compared(records, responses[:, None])
    if rule == "best_against_worst":
        worst = (ranks == ranks.max(axis=1, keepdims=True)).argmax(axis=1)  # the first of them
        return Compared(np.arange(len(ranks)), np.column_stack([np.zeros_like(worst), worst]))
    better = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] >= 0)
    if rule == "best_against_each":
        better &= ranks[:, :, None] == 0
    records, first, second = np.nonzero(better)
    return Compared(records, np.column_stack([first, second]))


def best(records: int) -> Compared:
    """The best response of each, by itself."""
    return Compared(np.arange(records), np.zeros((records, 1), np.int64))


def dense_ranks(ratings: Sequence[float]) -> tuple[int, ...]:
    """Ranks of ratings, or of ranks, that stand from the best to the worst: 0 of the best, equal ones alike."""
    levels = {rating: rank for rank, rating in enumerate(dict.fromkeys(ratings))}
    return tuple(levels[rating] for rating in ratings)
