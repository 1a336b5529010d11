"""Prompts with what a policy wrote to them, and what is known of each token: rows to train on (issue 19)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config.objectives import TokenColumn
from orpo_ray.data.comparisons import Compared, Rule, compared
from orpo_ray.data.dataset import Ids, PairDataset


@dataclass(frozen=True)
class Rollouts:
    """Records of a prompt and one or more responses, each judged by itself. As `Texts`."""

    prompts: Sequence[Ids]
    responses: Sequence[Sequence[Ids]]
    """Of each prompt; at least one, none empty."""
    columns: Mapping[TokenColumn, NDArray[np.float32]]
    """`(tokens,)` each: of all tokens of all responses, one response after another."""

    @property
    def reference(self) -> None:
        return None

    @property
    def rule(self) -> Rule:
        return "labels"

    @property
    def are_pairs(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.prompts)

    def pair(self, i: int) -> tuple[Ids, ...]:
        return (self.prompts[i], *self.responses[i])

    def counts(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """Responses of the records at `indices`, or of all."""
        return np.array([len(self.responses[i]) for i in self._all(indices)], np.int64)

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """`(records, 1 + K)`: tokens of prompt and responses; 0 where a record has fewer than another."""
        return self._table(indices, lambda i: list(map(len, self.pair(i))), 1, 0)

    def ranks(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """`(records, K)`: 0; -1 where a record has fewer responses than another."""
        return self._table(indices, lambda i: [0] * len(self.responses[i]), 0, -1)

    def compared(self, indices: NDArray[np.integer] | None = None) -> Compared:
        return compared(self.ranks(indices), self.rule)

    def token_columns(self, indices: NDArray[np.integer]) -> dict[TokenColumn, NDArray[np.float32]]:
        """Of the records at `indices`, in the order that they are packed in: `(tokens,)` each."""
        tokens = np.array([sum(map(len, record)) for record in self.responses])
        ends = tokens.cumsum()
        places = np.concatenate([np.arange(ends[i] - tokens[i], ends[i]) for i in indices])
        return {name: column[places] for name, column in self.columns.items()}

    def _all(self, indices: NDArray[np.integer] | None) -> list[int]:
        return list(range(len(self))) if indices is None else [int(i) for i in indices]

    def _table(
        self, indices: NDArray[np.integer] | None, of: Callable[[int], list[int]], more: int, nothing: int
    ) -> NDArray[np.int64]:
        rows = [of(i) for i in self._all(indices)]
        table = np.full((len(rows), max(map(len, rows), default=more)), nothing, np.int64)
        for row, numbers in zip(table, rows, strict=True):
            row[: len(numbers)] = numbers
        return table


def as_pairs(
    prompts: Sequence[Ids], chosen: Sequence[Ids], rejected: Sequence[Ids], reference: NDArray[np.float32] | None
) -> PairDataset:
    """Pairs of responses that were just written, as any other pairs. `reference (pairs, 2)`: their summed log-probs
    under a reference model."""
    parts = [part for pair in zip(prompts, chosen, rejected, strict=True) for part in pair]
    ends = np.cumsum([len(part) for part in parts]).reshape(-1, 3)
    starts = np.r_[0, ends[:-1, 2]][:, None]
    return PairDataset(
        np.concatenate(parts).astype(np.int32), np.column_stack([starts, ends]), np.arange(len(prompts)), reference
    )
