"""Several sources of pairs as one data set, and what a step takes of each.

A source's order follows from the seed and its name, and how often it is asked from the weights (see
`schedule.apportioned`): one that grows moves no other's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config.schema import SourceConfig
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.schedule import Share


@dataclass(frozen=True)
class JoinedPairs:
    """The pairs of several sources, those of one after those of another."""

    names: tuple[str, ...]
    parts: tuple[PairDataset, ...]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """(sources + 1,): the first pair of each source, and behind the last."""
        return np.cumsum([0, *map(len, self.parts)])

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """The first pair of each source that has any, and the one behind its last."""
        spans = zip(self.names, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        return {name: (start, end) for name, start, end in spans if start < end}

    @cached_property
    def reference(self) -> NDArray[np.float32] | None:
        """(pairs, 2), as in `PairDataset`."""
        references = [part.reference for part in self.parts if part.reference is not None]
        return np.concatenate(references) if references else None

    @property
    def record_ids(self) -> NDArray[np.int64]:
        """(pairs,): of each pair its record in its source; a copy."""
        return np.concatenate([part.record_ids for part in self.parts])

    def pair(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the prompt, the chosen and the rejected response of pair `i`, as views."""
        source = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.parts[source].pair(i - int(self._starts[source]))

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(pairs, 3): tokens of prompt, chosen and rejected of the pairs at `indices`, or of all."""
        if indices is None:
            return np.concatenate([part.lengths() for part in self.parts])
        lengths = np.empty((len(indices), 3), np.int64)
        sources = np.searchsorted(self._starts, indices, side="right") - 1
        for source, part in enumerate(self.parts):
            here = sources == source
            lengths[here] = part.lengths(indices[here] - self._starts[source])
        return lengths

    def record(self, i: int) -> str:
        """What messages call the record of pair `i`."""
        source = int(np.searchsorted(self._starts, i, side="right")) - 1
        return f"{self.names[source]}: {self.parts[source].record(i - int(self._starts[source]))}"

    def shares(self, sources: Sequence[SourceConfig], temperature: float | None, seed: int) -> tuple[Share, ...]:
        """What a schedule takes of each; `sources`: those of the configuration, in the order of `parts`."""
        weights = _weights(sources, [len(part) for part in self.parts], temperature)
        return tuple(
            Share(start, len(part), weight, (seed, _number(name)))
            for name, part, weight, start in zip(self.names, self.parts, weights, self._starts.tolist(), strict=False)
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
