"""Tokenised preference pairs, laid end to end in one flat array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Pairs(Protocol):
    """Pairs of one source, or of several."""

    @property
    def reference(self) -> NDArray[np.float32] | None: ...
    @property
    def record_ids(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def pair(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]: ...
    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]: ...
    def record(self, i: int) -> int | str: ...


@dataclass(frozen=True)
class PairDataset:
    """Preference pairs as token ids; a view, cheap to take subsets of.

    A prompt begins with BOS where its template, or the tokenizer before plain text, writes one. A response ends with
    the token that ends its turn, the template's or EOS, unless it was cut to fit: it did not end there.
    """

    tokens: NDArray[np.int32]
    """(total_tokens,), memory-mapped: prompt | chosen | rejected of each pair, one pair after another."""
    source_bounds: NDArray[np.int64]
    """(source pairs, 4), memory-mapped: start of the prompt, of chosen, of rejected, and the end, as positions
    in `tokens`."""
    source_record_ids: NDArray[np.int64]
    """(source pairs,), memory-mapped: index of the record in its source, counted from 0, for messages."""

    reference: NDArray[np.float32] | None = None
    """(pairs, 2): summed log-probs of chosen and rejected under a reference model, where one was asked."""
    rows: NDArray[np.int64] | None = None
    """(pairs,): the source's pairs that this view holds, in its order, memory-mapped where they are a run's; None: all.
    Their bounds stay on disk."""

    def __len__(self) -> int:
        return len(self.source_bounds if self.rows is None else self.rows)

    @property
    def bounds(self) -> NDArray[np.int64]:
        """(pairs, 4): the source's bounds of all pairs of this view; a copy where it is a subset."""
        return self.source_bounds if self.rows is None else self.source_bounds[self.rows]

    @property
    def record_ids(self) -> NDArray[np.int64]:
        """(pairs,): the records of all pairs of this view; a copy where it is a subset."""
        return self.source_record_ids if self.rows is None else self.source_record_ids[self.rows]

    def record(self, i: int) -> int | str:
        """What messages call the record of pair `i`."""
        return int(self.source_record_ids[i if self.rows is None else self.rows[i]])

    def pair(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the prompt, the chosen and the rejected response of pair `i`, as views."""
        row = i if self.rows is None else self.rows[i]
        start, chosen, rejected, end = self.source_bounds[row].tolist()
        return self.tokens[start:chosen], self.tokens[chosen:rejected], self.tokens[rejected:end]

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(pairs, 3): tokens of prompt, chosen and rejected of the pairs at `indices`, or of all."""
        if indices is None:
            return np.diff(self.bounds, axis=1)
        return np.diff(self.source_bounds[indices if self.rows is None else self.rows[indices]], axis=1)

    def subset(self, indices: NDArray[np.integer]) -> PairDataset:
        """The pairs at `indices`, in that order, over the same tokens; holds eight bytes a pair."""
        rows = indices.astype(np.int64, copy=False) if self.rows is None else self.rows[indices]
        reference = None if self.reference is None else self.reference[indices]
        return PairDataset(self.tokens, self.source_bounds, self.source_record_ids, reference, rows)
