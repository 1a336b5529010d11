"""Tokenised records, prompts with their responses, laid end to end in one flat array."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from orpo_ray.data.comparisons import Compared, Rule, compared

if TYPE_CHECKING:
    from orpo_ray.data.mismatch import Mismatched
    from orpo_ray.data.prompts import Prompt

Ids = NDArray[np.int32]


class Texts(Protocol):
    """Prompts with responses that are packed together; of one source, or of several."""

    @property
    def reference(self) -> NDArray[np.float32] | None: ...
    @property
    def rule(self) -> Rule: ...
    @property
    def are_pairs(self) -> bool: ...
    def __len__(self) -> int: ...
    def pair(self, i: int) -> tuple[Ids, ...]: ...
    def counts(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]: ...
    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]: ...
    def ranks(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]: ...
    def compared(self, indices: NDArray[np.integer] | None = None) -> Compared: ...


class Pairs(Texts, Protocol):
    """Records to train on or to evaluate; see `PairDataset`."""

    @property
    def record_ids(self) -> NDArray[np.int64]: ...
    @property
    def mismatched(self) -> Texts | None: ...
    @property
    def unit(self) -> str: ...
    def record(self, i: int) -> int | str: ...
    def amount(self) -> str: ...


class Prompts(Pairs, Protocol):
    """Records of a prompt alone, for a policy to answer; see `questions.PromptDataset`."""

    def question(self, i: int) -> Prompt: ...


@dataclass(frozen=True)
class PairDataset:
    """Prompts with ranked or labelled responses as token ids; a view, cheap to take subsets of.

    Most data are pairs: two responses to each prompt, chosen and rejected. Others have any number of them, each
    record its own, from the best to the worst. Tables are then as wide as the most responses of a record.

    A prompt begins with exactly one BOS where the tokenizer has one. A response ends with exactly one EOS,
    unless it was cut to fit: a cut response did not end there, so it has none.
    """

    tokens: NDArray[np.int32]
    """(total_tokens,), memory-mapped: prompt | chosen | rejected of each pair, one pair after another; of other records
    prompt | response 1 | … | response K."""
    source_bounds: NDArray[np.int64]
    """(source pairs, 4), memory-mapped: start of the prompt, of chosen, of rejected, and the end, as positions
    in `tokens`. Where not all are pairs, flat: of each record K + 2 numbers."""
    source_record_ids: NDArray[np.int64]
    """(source records,), memory-mapped: index of the record in its source, counted from 0, for messages."""

    reference: NDArray[np.float32] | None = None
    """(records, K): summed log-probs of the responses under a reference model, where one was asked; NaN where a record
    has fewer responses."""
    rows: NDArray[np.int64] | None = None
    """(records,): the source's records that this view holds, in its order, memory-mapped where they are a run's; None:
    all. Their bounds stay on disk."""
    source_starts: NDArray[np.int64] | None = None
    """(source records + 1,), memory-mapped: where each record's numbers begin in `source_bounds`; None: all are pairs.
    """
    source_ranks: NDArray[np.int32] | None = None
    """(source responses,), memory-mapped: rank of each response (see `comparisons`); None: all are pairs."""
    rule: Rule = "every_pair"
    """What is compared."""
    mismatched: Mismatched | None = None
    """Where responses are labelled: each prompt with another's response."""

    def __len__(self) -> int:
        return len(self.source_record_ids if self.rows is None else self.rows)

    @property
    def are_pairs(self) -> bool:
        """Whether every record is one comparison of two responses, so that its row of a table is the comparison's."""
        return self.source_starts is None and self.rule != "labels"

    @property
    def bounds(self) -> NDArray[np.int64]:
        """(pairs, 4): the source's bounds of all pairs of this view; a copy where it is a subset."""
        return self.source_bounds if self.rows is None else self.source_bounds[self.rows]

    @property
    def record_ids(self) -> NDArray[np.int64]:
        """(records,): the records of all pairs of this view; a copy where it is a subset."""
        return self.source_record_ids if self.rows is None else self.source_record_ids[self.rows]

    def record(self, i: int) -> int | str:
        """What messages call record `i`."""
        return int(self.source_record_ids[i if self.rows is None else self.rows[i]])

    def pair(self, i: int) -> tuple[Ids, ...]:
        """Token ids of prompt and responses of record `i`, as views: of a pair (prompt, chosen, rejected)."""
        row = i if self.rows is None else self.rows[i]
        if self.source_starts is None:
            bounds = self.source_bounds[row].tolist()
        else:
            bounds = self.source_bounds[self.source_starts[row] : self.source_starts[row + 1]].tolist()
        return tuple(self.tokens[start:end] for start, end in itertools.pairwise(bounds))

    def counts(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records,): responses of the records at `indices`, or of all."""
        rows = self._rows(indices)
        if self.source_starts is None:
            return np.full(len(rows), 2)
        return self.source_starts[rows + 1] - self.source_starts[rows] - 2

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, 1 + K): tokens of the prompt and of each response of the records at `indices`, or of all: of pairs
        (pairs, 3). 0 where a record has fewer responses than another."""
        if self.source_starts is None:
            bounds = self.bounds if indices is None else self.source_bounds[self._rows(indices)]
            return np.diff(bounds, axis=1)
        rows, counts = self._rows(indices), self.counts(indices)
        numbers = np.minimum(np.arange(2 + counts.max(initial=0)), 1 + counts[:, None])
        return np.diff(self.source_bounds[self.source_starts[rows][:, None] + numbers], axis=1)

    def ranks(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, K): of each response of the records at `indices`, or of all; -1 where a record has fewer."""
        rows, counts = self._rows(indices), self.counts(indices)
        numbers = np.arange(counts.max(initial=0))
        if self.source_starts is None or self.source_ranks is None:
            return np.tile(numbers, (len(rows), 1))
        first = self.source_starts[rows] - 2 * rows  # a record has two bounds more than it has responses
        there = numbers < counts[:, None]
        found = self.source_ranks[np.where(there, first[:, None] + numbers, 0)]
        return np.where(there, found, -1).astype(np.int64)

    def compared(self, indices: NDArray[np.integer] | None = None) -> Compared:
        """What an objective compares of the records at `indices`, or of all."""
        return compared(self.ranks(indices), self.rule)

    def _rows(self, indices: NDArray[np.integer] | None) -> NDArray[np.int64]:
        if indices is None:
            return np.arange(len(self)) if self.rows is None else self.rows
        return indices.astype(np.int64, copy=False) if self.rows is None else self.rows[indices]

    def subset(self, indices: NDArray[np.integer]) -> Self:
        """The records at `indices`, in that order, over the same tokens; holds eight bytes a record."""
        reference = None if self.reference is None else self.reference[indices]
        return replace(self, reference=reference, rows=self._rows(indices), mismatched=None)

    @property
    def unit(self) -> str:
        return unit_of(self)

    def amount(self) -> str:
        """How much there is, for a reader: `12 pairs`, `12 prompts with 40 responses`, or `12 prompts`."""
        return amount_of(self)

    def identify(self, digest: hashlib.blake2b) -> None:
        """Put into `digest` what decides the numbers that a model gives to these records."""
        if self.source_starts is None:
            digest.update(np.ascontiguousarray(self.bounds).data)
        else:
            digest.update(np.ascontiguousarray(self.lengths()).data)
            digest.update(np.ascontiguousarray(self._rows(None)).data)
        for start in range(0, len(self.tokens), 1 << 24):
            digest.update(np.ascontiguousarray(self.tokens[start : start + (1 << 24)]).data)


def unit_of(data: Texts) -> str:
    return "pairs" if data.are_pairs else "prompts"


def amount_of(data: Texts) -> str:
    if data.are_pairs:
        return f"{len(data):,} pairs"
    responses = int(data.counts().sum())
    return f"{len(data):,} prompts" + (f" with {responses:,} responses" if responses else "")
