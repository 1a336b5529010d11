"""Several sources of pairs as one data set, and what a step takes of each.

A source's order follows from the seed and its name, and how often it is asked from the weights (see
`schedule.apportioned`): one that grows moves no other's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config.data import SourceConfig
from orpo_ray.data.comparisons import Compared, Rule, compared
from orpo_ray.data.dataset import Ids, PairDataset, Texts, amount_of, unit_of
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.schedule import Share

Part = TypeVar("Part", bound=Texts)


@dataclass(frozen=True)
class JoinedTexts(Generic[Part]):
    """What several sources have, those of one after those of another."""

    names: tuple[str, ...]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(sources + 1,): the first record of each source, and behind the last."""
        return np.cumsum([0, *map(len, self.parts)])

    @property
    def rule(self) -> Rule:
        return self.parts[0].rule

    @property
    def are_pairs(self) -> bool:
        return all(part.are_pairs for part in self.parts)

    @cached_property
    def reference(self) -> NDArray[np.float32] | None:
        """(records, K), as in `PairDataset`."""
        references = [part.reference for part in self.parts if part.reference is not None]
        return below_each_other(references, np.nan) if references else None

    def at(self, i: int) -> tuple[int, int]:
        """Which source record `i` is of, and its number there."""
        source = int(np.searchsorted(self.starts, i, side="right")) - 1
        return source, i - int(self.starts[source])

    def pair(self, i: int) -> tuple[Ids, ...]:
        """Token ids of prompt and responses of record `i`, as views."""
        source, number = self.at(i)
        return self.parts[source].pair(number)

    def counts(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records,): responses of the records at `indices`, or of all."""
        return self._table(lambda part, rows: part.counts(rows)[:, None], indices, 0)[:, 0]

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, 1 + K): tokens of the prompt and of each response, as in `PairDataset`."""
        return self._table(lambda part, rows: part.lengths(rows), indices, 0)

    def ranks(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, K): of each response, as in `PairDataset`."""
        return self._table(lambda part, rows: part.ranks(rows), indices, -1)

    def compared(self, indices: NDArray[np.integer] | None = None) -> Compared:
        """What an objective compares of the records at `indices`, or of all."""
        return compared(self.ranks(indices), self.rule)

    def _table(
        self,
        of_part: Callable[[Part, NDArray[np.int64]], NDArray[np.int64]],
        indices: NDArray[np.integer] | None,
        nothing: int,
    ) -> NDArray[np.int64]:
        """What `of_part` says of each source's own records, in the order of `indices`."""
        indices = np.arange(len(self)) if indices is None else indices
        sources = np.searchsorted(self.starts, indices, side="right") - 1
        own = [np.flatnonzero(sources == source) for source in range(len(self.parts))]
        there = [(self.parts[i], rows, indices[rows] - self.starts[i]) for i, rows in enumerate(own) if len(rows)]
        if not there:
            return of_part(self.parts[0], np.empty(0, np.int64))
        stacked = below_each_other([of_part(part, numbers) for part, _, numbers in there], nothing)
        table = np.empty_like(stacked)
        table[np.concatenate([rows for _, rows, _ in there])] = stacked
        return table


class JoinedPairs(JoinedTexts[PairDataset]):
    """The records of several sources as one data set."""

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """The first record of each source that has any, and the one behind its last."""
        spans = zip(self.names, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return {name: (start, end) for name, start, end in spans if start < end}

    @property
    def mismatched(self) -> JoinedTexts[Mismatched] | None:
        """Where responses are labelled: each prompt with another's response, of the same source."""
        parts = [part.mismatched for part in self.parts if part.mismatched is not None]
        return JoinedTexts(self.names, tuple(parts)) if parts else None

    @property
    def record_ids(self) -> NDArray[np.int64]:
        """(records,): of each its record in its source; a copy."""
        return np.concatenate([part.record_ids for part in self.parts])

    def sources_of(self, indices: NDArray[np.integer]) -> list[str]:
        """The names of the sources that the records at `indices` are of."""
        return [self.names[i] for i in (np.searchsorted(self.starts, indices, side="right") - 1).tolist()]

    def record(self, i: int) -> str:
        """What messages call record `i`."""
        source, number = self.at(i)
        return f"{self.names[source]}: {self.parts[source].record(number)}"

    @property
    def unit(self) -> str:
        return unit_of(self)

    def amount(self) -> str:
        """How much there is, for a reader."""
        return amount_of(self)

    def shares(self, sources: Sequence[SourceConfig], temperature: float | None, seed: int) -> tuple[Share, ...]:
        """What a schedule takes of each; `sources`: those of the configuration, in the order of `parts`."""
        weights = _weights(sources, [len(part) for part in self.parts], temperature)
        return tuple(
            Share(start, len(part), weight, (seed, _number(name)))
            for name, part, weight, start in zip(
                self.names, self.parts, weights, self.starts[:-1].tolist(), strict=True
            )
        )


def below_each_other(tables: Sequence[NDArray[Any]], nothing: float) -> NDArray[Any]:
    """Tables as one, each filled up to the widest."""
    width = max(table.shape[1] for table in tables)
    return np.concatenate(
        [np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=nothing) for table in tables]
    )


def _weights(sources: Sequence[SourceConfig], pairs: Sequence[int], temperature: float | None) -> list[int]:
    """In whole numbers, so that any machine divides alike."""
    if temperature is not None:
        # Powers may differ in their last bits from one machine to the next.
        weights = [Fraction(round(size ** (1 / temperature) * 2**20), 2**20) for size in pairs]
    else:
        weights = [
            Fraction(size) if source.weight is None else Fraction(repr(source.weight))
            for source, size in zip(sources, pairs, strict=True)
        ]
    unit = lcm(*(weight.denominator for weight in weights))
    return [int(weight * unit) for weight in weights]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
