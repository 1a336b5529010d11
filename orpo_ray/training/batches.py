"""From a list of pairs to this rank's packed micro-batches, made ready ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orpo_ray.data.dataset import Pairs
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.data.schedule import Indices, deal
from orpo_ray.objectives.terms import Totals

T = TypeVar("T")


class Cut(NamedTuple):
    """One micro-batch of one rank, as pairs of the data set."""

    pairs: Indices
    weight: float
    """1.0; or 0.0 where this rank has nothing left and computes one pair to keep in step with the others."""


class Work(NamedTuple):
    """A global step or an evaluation, as one rank sees it."""

    cuts: list[Cut]
    totals: Totals
    tokens: int
    """Packed tokens of all ranks."""


class MicroBatch(NamedTuple):
    """What one forward and backward takes."""

    work: Work
    pairs: Indices
    batch: PackedBatch
    reference: Tensor | None
    """`(pairs, 2)`: reference log-prob sums of chosen and rejected, where the data has them."""
    last: bool
    """Whether the step ends with it."""

    def to(self, device: torch.device) -> MicroBatch:
        reference = None if self.reference is None else self.reference.to(device, non_blocking=True)
        return self._replace(batch=self.batch.to(device), reference=reference)

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory, from which copies to a CUDA device run beside its work."""
        reference = None if self.reference is None else self.reference.pin_memory()
        return self._replace(batch=self.batch.pinned(), reference=reference)


def plan(
    data: Pairs, indices: Indices, *, continuations: int, score_prompts: bool, rank: int, ranks: int, budget: int
) -> Work:
    """Deal `indices` to ranks and cut this rank's share into micro-batches of at most `budget` tokens."""
    lengths = data.lengths(indices)  # (pairs, 3)
    token_counts = lengths[:, : 1 + continuations].sum(axis=1)
    filler = Cut(indices[token_counts.argmin()][None], weight=0.0)
    return Work(
        cuts=[Cut(indices[cut], 1.0) if len(cut) else filler for cut in deal(token_counts, ranks, budget)[rank]],
        totals=totals_of(lengths, score_prompts),
        tokens=int(token_counts.sum()),
    )


def totals_of(lengths: NDArray[np.int64], score_prompts: bool) -> Totals:
    """Of pairs with these `lengths (pairs, 3)`."""
    nll_tokens = lengths[:, 1].sum() + (lengths[:, 0] - 1).sum() * score_prompts
    return Totals(pairs=len(lengths), nll_tokens=int(nll_tokens))


def micro_batches(
    data: Pairs, works: Iterable[Work], *, continuations: int, score_prompts: bool, device: torch.device
) -> Iterator[MicroBatch]:
    """The micro-batches of `works`, one after another, packed by a thread while those before are computed."""

    def packed() -> Iterator[MicroBatch]:
        for work in works:
            for number, cut in enumerate(work.cuts, start=1):
                examples = [data.pair(pair)[: 1 + continuations] for pair in cut.pairs.tolist()]
                batch = pack(examples, score_prompts=score_prompts, weight=cut.weight)
                reference = None if data.reference is None else torch.from_numpy(data.reference[cut.pairs])
                micro_batch = MicroBatch(work, cut.pairs, batch, reference, last=number == len(work.cuts))
                yield micro_batch.pinned() if device.type == "cuda" else micro_batch

    return ahead(packed())


def ahead(items: Iterator[T], number: int = 2) -> Iterator[T]:
    """`items`, each made by one other thread while its predecessors, at most `number`, are in use."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="orpo_ray-batches") as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(number))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def predictions(data: Pairs, score_prompts: bool) -> Tensor:
    """Predictions `(pairs, 3)` of prompt, chosen and rejected of every pair, as `pack` counts them."""
    lengths = data.lengths()
    lengths[:, 0] = (lengths[:, 0] - 1) * score_prompts
    return torch.from_numpy(lengths)
