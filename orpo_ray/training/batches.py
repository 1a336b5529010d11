"""From a list of records to this rank's packed micro-batches, made ready ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orpo_ray.config.objectives import Column
from orpo_ray.data.comparisons import Compared, best
from orpo_ray.data.dataset import Texts
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.data.rollouts import Rollouts
from orpo_ray.data.schedule import Indices, deal
from orpo_ray.objectives.terms import Totals

T = TypeVar("T")


class Cut(NamedTuple):
    """One micro-batch of one rank, as records of the data set."""

    pairs: Indices
    weight: float
    """1.0; or 0.0 where this rank has nothing left and computes one record to keep in step with the others."""


class Work(NamedTuple):
    """A global step or an evaluation, as one rank sees it."""

    data: Texts
    best_alone: bool
    """Whether the first response of each record is packed, or all."""
    score_prompts: bool
    cuts: list[Cut]
    totals: Totals
    tokens: int
    """Packed tokens of all ranks."""


class Rows(NamedTuple):
    """How the numbers of a batch's sequences are laid out for an objective: a row for each comparison, or response."""

    records: Indices
    """`(rows,)`, on the host: the record of the data set that each row is of."""
    positions: Tensor | None
    """`(rows, 3)`: sequences of the prompt, the better and the worse response; or `(rows, 2)`, of prompt and response.
    None: all sequences, as they stand."""
    columns: dict[Column, Tensor]
    """What the data say of the rows: `reference (rows, 2)` or `(rows, 1)`, `choices (winners,)`, `desirable (rows,)`;
    those that they have."""

    def lay_out(self, values: Tensor, prompts: int) -> Tensor:
        """`values (sequences,)` of a batch of `prompts`, in rows."""
        return values.view(prompts, -1) if self.positions is None else values[self.positions]

    def to(self, device: torch.device) -> Rows:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Rows:
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> Rows:
        positions = None if self.positions is None else move(self.positions)
        return Rows(self.records, positions, {name: move(column) for name, column in self.columns.items()})


class MicroBatch(NamedTuple):
    """What one forward and backward takes."""

    work: Work
    pairs: Indices
    """Records of the data set."""
    batch: PackedBatch
    rows: Rows
    last: bool
    """Whether the step ends with it."""

    def to(self, device: torch.device) -> MicroBatch:
        return self._replace(batch=self.batch.to(device), rows=self.rows.to(device))

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory, from which copies to a CUDA device run beside its work."""
        return self._replace(batch=self.batch.pinned(), rows=self.rows.pinned())


def plan(
    data: Texts,
    indices: Indices,
    *,
    best_alone: bool,
    score_prompts: bool,
    rank: int,
    ranks: int,
    budget: int,
) -> Work:
    """Deal `indices` to ranks and cut this rank's share into micro-batches of at most `budget` tokens."""
    lengths = data.lengths(indices)  # (records, 1 + K)
    token_counts = (lengths[:, :2] if best_alone else lengths).sum(axis=1)
    filler = Cut(indices[token_counts.argmin()][None], weight=0.0)
    totals = totals_of(data, indices, best_alone=best_alone, score_prompts=score_prompts)
    cuts = [Cut(indices[cut], 1.0) if len(cut) else filler for cut in deal(token_counts, ranks, budget)[rank]]
    return Work(data, best_alone, score_prompts, cuts, totals, tokens=int(token_counts.sum()))


def totals_of(data: Texts, indices: Indices, *, best_alone: bool, score_prompts: bool) -> Totals:
    """What the records at `indices` add up to."""
    rows = _compared(data, indices, best_alone)
    better = rows.of(data.lengths(indices))[:, :2]  # (rows, 2): of prompt and chosen, in each comparison
    nll_tokens = better[:, 1].sum() + (better[:, 0] - 1).sum() * score_prompts
    totals = Totals(pairs=len(rows.records), nll_tokens=int(nll_tokens), records=len(indices))
    desirable = _desirable(data, indices, rows)
    return totals if desirable is None else totals._replace(desirable=int(desirable.sum()))


def micro_batches(works: Iterable[Work], device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches of `works`, one after another, packed by a thread while those before are computed."""

    def packed() -> Iterator[MicroBatch]:
        for work in works:
            for number, cut in enumerate(work.cuts, start=1):
                examples = [work.data.pair(pair)[: 2 if work.best_alone else None] for pair in cut.pairs.tolist()]
                batch = pack(examples, score_prompts=work.score_prompts, weight=cut.weight)
                rows = rows_of(work.data, cut.pairs, best_alone=work.best_alone)
                micro_batch = MicroBatch(work, cut.pairs, batch, rows, last=number == len(work.cuts))
                yield micro_batch.pinned() if device.type == "cuda" else micro_batch

    return ahead(packed())


def rows_of(data: Texts, indices: Indices, *, best_alone: bool) -> Rows:
    """What an objective is given of the records at `indices`, packed in this order."""
    rows = _compared(data, indices, best_alone)
    uniform = best_alone or data.are_pairs
    columns: dict[Column, Tensor] = {"choices": torch.from_numpy(rows.choices)}
    if data.reference is not None:
        of_records = data.reference[indices]  # (records, K)
        columns["reference"] = torch.from_numpy(of_records[rows.records[:, None], rows.responses])
    desirable = _desirable(data, indices, rows)
    if isinstance(data, Rollouts):
        columns |= {name: torch.from_numpy(column) for name, column in data.token_columns(indices).items()}
    elif desirable is not None:
        columns["desirable"] = torch.from_numpy(desirable)
    positions = None if uniform else torch.from_numpy(rows.positions(data.counts(indices)))
    return Rows(indices[rows.records], positions, columns)


def _compared(data: Texts, indices: Indices, best_alone: bool) -> Compared:
    return best(len(indices)) if best_alone else data.compared(indices)


def _desirable(data: Texts, indices: Indices, rows: Compared) -> NDArray[np.bool_] | None:
    """`(rows,)`: labels of responses that are judged one by one."""
    if data.rule != "labels":
        return None
    labels: NDArray[np.bool_] = data.ranks(indices)[rows.records, rows.responses[:, 0]] == 0
    return labels


def ahead(items: Iterator[T], number: int = 2) -> Iterator[T]:
    """`items`, each made by one other thread while its predecessors, at most `number`, are in use."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="orpo_ray-batches") as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(number))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def predictions(data: Texts, indices: Indices, score_prompts: bool) -> Tensor:
    """Predictions `(records, 1 + K)` of the prompt and the responses of the records at `indices`, as `pack` counts
    them."""
    lengths = data.lengths(indices)
    lengths[:, 0] = (lengths[:, 0] - 1) * score_prompts
    return torch.from_numpy(lengths)
