"""Which pairs a global step holds, and how they are dealt to ranks and cut into micro-batches.

The step's pairs are a function of (seed, epoch, step) alone, never of the machine; only then are they dealt
out. The only state of the sampler is the step number, so a resumed run meets exactly the pairs it would have.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 4


def permuted(positions: Indices, size: int, seed: int, epoch: int) -> Indices:
    """A pseudo-random permutation of `range(size)`, evaluated at `positions` only.

    A Feistel network over the smallest even number of bits that holds `size`, walked until it lands inside:
    no shuffled array of the whole data set is ever made, so a step costs the same for any size.
    """
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    keys = _keys(seed, epoch)
    walked = positions.astype(np.uint64)
    outside = np.ones(len(walked), dtype=bool)
    while outside.any():
        left, right = walked[outside] >> half_bits, walked[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix64(right ^ key) & mask)
        walked[outside] = (left << half_bits) | right
        outside = walked >= size
    return walked.astype(np.int64)


@lru_cache(1)
def _keys(seed: int, epoch: int) -> list[np.uint64]:
    """Of the rounds: the same for all steps of an epoch, and dearer to make than to use."""
    return list(np.random.default_rng([seed, epoch]).integers(0, 2**64, _ROUNDS, dtype=np.uint64))


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of 64-bit numbers: a permutation of them whose every bit depends on every other."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class StepSchedule:
    """The global steps of a run: each epoch meets every pair once, its last step may be smaller.

    `max_steps` wins over `epochs`, as in Hugging Face's trainers: it ends the last epoch early, or repeats epochs.
    """

    pairs: int
    global_batch_size: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.pairs // self.global_batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch if self.max_steps is None else self.max_steps

    def indices(self, step: int) -> Indices:
        """The pairs of global step `step` (from 0)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch_size
        positions = np.arange(start, min(start + self.global_batch_size, self.pairs))
        return permuted(positions, self.pairs, self.seed, epoch)


def deal(token_counts: Indices, ranks: int, budget: int) -> list[list[Indices]]:
    """Deal items to ranks, balanced by tokens, and cut each rank's share into micro-batches.

    `token_counts (items,)`. Returns, per rank, the same number of index arrays; a micro-batch holds at most
    `budget` tokens, or a single longer item; an empty array means that this rank has nothing left to do in
    that micro-batch. Longest first to the least loaded rank, then to the fullest micro-batch that has room.

    Every rank deals for all of them in every step, so this takes about a microsecond an item.
    """
    longest_first = np.argsort(-token_counts, kind="stable")
    counts = token_counts[longest_first]
    owners, loads = _least_loaded(counts.tolist(), ranks)
    by_rank = np.argsort(owners, kind="stable")  # within a rank still longest first
    items, counts = longest_first[by_rank], counts[by_rank]
    ends = np.cumsum(np.bincount(owners, minlength=ranks)).tolist()
    shares: list[list[Indices]] = []
    for start, end, load in zip([0, *ends[:-1]], ends, loads, strict=True):
        share = items[start:end]
        shares.append([share] if load <= budget else [share[cut] for cut in _cuts(counts[start:end].tolist(), budget)])
    most = max(len(cuts) for cuts in shares)
    nothing = items[:0]
    return [cuts + [nothing] * (most - len(cuts)) for cuts in shares]


def _least_loaded(counts: list[int], ranks: int) -> tuple[Indices, list[int]]:
    """The rank of each item, given in turn to the rank with the fewest tokens; and the tokens of each rank."""
    heap = list(range(ranks))  # load * ranks + rank: one integer, which a heap compares faster than a tuple
    owners = []
    for count in counts:
        least = heap[0]
        owners.append(least % ranks)
        heapq.heapreplace(heap, least + count * ranks)
    loads = [0] * ranks
    for entry in heap:
        loads[entry % ranks] = entry // ranks
    return np.array(owners, np.int64), loads


def _cuts(counts: list[int], budget: int) -> list[list[int]]:
    """Positions in `counts`, longest first, cut into micro-batches of at most `budget` tokens by best fit."""
    cuts: list[list[int]] = []
    rooms: list[int] = []  # tokens left * items + cut, ascending
    items = len(counts)
    for position, count in enumerate(counts):
        at = bisect.bisect_left(rooms, count * items)
        if at < len(rooms):
            room, cut = divmod(rooms.pop(at), items)
            cuts[cut].append(position)
        else:
            room, cut = budget, len(cuts)
            cuts.append([position])
        bisect.insort(rooms, (room - count) * items + cut)
    return cuts
