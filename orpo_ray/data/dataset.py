"""Tokenised preference pairs, laid end to end in one flat array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairDataset:
    """Preference pairs as token ids; a view, cheap to take subsets of.

    A prompt begins with exactly one BOS where the tokenizer has one. A response ends with exactly one EOS,
    unless it was cut to fit: a cut response did not end there, so it has none.
    """

    tokens: NDArray[np.int32]
    """(total_tokens,), memory-mapped: prompt | chosen | rejected of each pair, one pair after another."""
    bounds: NDArray[np.int64]
    """(pairs, 4): start of the prompt, of chosen, of rejected, and the end, as positions in `tokens`."""
    record_ids: NDArray[np.int64]
    """(pairs,): index of the record in its source, counted from 0, for messages."""

    reference: NDArray[np.float32] | None = None
    """(pairs, 2): summed log-probs of chosen and rejected under a reference model, where one was asked."""

    def __len__(self) -> int:
        return len(self.bounds)

    def pair(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the prompt, the chosen and the rejected response of pair `i`, as views."""
        start, chosen, rejected, end = self.bounds[i].tolist()
        return self.tokens[start:chosen], self.tokens[chosen:rejected], self.tokens[rejected:end]

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(pairs, 3): tokens of prompt, chosen and rejected of the pairs at `indices`, or of all."""
        bounds = self.bounds if indices is None else self.bounds[indices]
        return np.diff(bounds, axis=1)

    def subset(self, indices: NDArray[np.integer]) -> PairDataset:
        """The pairs at `indices`, in that order, over the same tokens."""
        reference = None if self.reference is None else self.reference[indices]
        return PairDataset(self.tokens, self.bounds[indices], self.record_ids[indices], reference)
