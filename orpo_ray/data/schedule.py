"""Which pairs a global step holds, and how they are dealt to ranks and cut into micro-batches.

The step's pairs are a function of (seed, epoch, step) alone, never of the machine; only then are they dealt
out. The only state of the sampler is the step number, so a resumed run meets exactly the pairs it would have.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 4


def permuted(positions: Indices, size: int, seed: int | tuple[int, ...], epoch: int) -> Indices:
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


@lru_cache(64)
def _keys(seed: int | tuple[int, ...], epoch: int) -> list[np.uint64]:
    """Of the rounds: the same for all steps of an epoch, and dearer to make than to use."""
    seeds = seed if isinstance(seed, tuple) else (seed,)
    return list(np.random.default_rng([*seeds, epoch]).integers(0, 2**64, _ROUNDS, dtype=np.uint64))


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of 64-bit numbers: a permutation of them whose every bit depends on every other."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Share(NamedTuple):
    """One of several sources, as a schedule sees it."""

    start: int
    """Its first pair among those of all."""
    pairs: int
    weight: int
    seed: tuple[int, ...]
    """Of its order."""


@dataclass(frozen=True)
class StepSchedule:
    """The global steps of a run: each epoch meets every pair once, its last step may be smaller.

    With `shares`, each step holds of every source what its weight says. Where weights are not the sources' sizes an
    epoch is no more than a number of steps: small sources that weigh much come again before large ones are through, and
    no step is smaller.

    `max_steps` wins over `epochs`, as in Hugging Face's trainers: it ends the last epoch early, or repeats epochs.
    """

    pairs: int
    global_batch_size: int
    epochs: int
    max_steps: int | None
    seed: int
    shares: tuple[Share, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.pairs // self.global_batch_size)

    @property
    def steps_of_epochs(self) -> int:
        """What `total_steps` are without `max_steps`."""
        return self.epochs * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_of_epochs if self.max_steps is None else self.max_steps

    def epoch(self, step: int) -> float:
        """Passes over the data that are done with `step` steps."""
        return step / self.steps_per_epoch

    def indices(self, step: int) -> Indices:
        """The pairs of global step `step` (from 0)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch_size
        end = min(start + self.global_batch_size, self.pairs)
        if not self.shares:
            return permuted(np.arange(start, end), self.pairs, self.seed, epoch)
        weights, before = [share.weight for share in self.shares], epoch * self.pairs
        if any(share.weight * self.pairs != share.pairs * sum(weights) for share in self.shares):
            before, start, end = 0, step * self.global_batch_size, (step + 1) * self.global_batch_size
        bounds = zip(apportioned(weights, before + start), apportioned(weights, before + end), strict=True)
        return np.concatenate([_drawn(share, *bound) for share, bound in zip(self.shares, bounds, strict=True)])


@dataclass(frozen=True)
class RoundSchedule:
    """The global steps of a run on rollouts: in a *round* one policy answers `per_round` prompts, and is then trained
    on them `passes` times, in steps of `per_step` prompts.

    Rounds take the prompts epoch behind epoch, so that none is smaller; the last may go beyond `epochs`. `max_steps`
    wins over `epochs`.
    """

    prompts: int
    per_round: int
    per_step: int
    passes: int
    epochs: int
    max_steps: int | None
    seed: int
    shares: tuple[Share, ...] = ()

    @property
    def steps_per_pass(self) -> int:
        return self.per_round // self.per_step

    @property
    def steps_per_round(self) -> int:
        return self.passes * self.steps_per_pass

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.prompts // self.per_round) * self.steps_per_round

    @property
    def steps_of_epochs(self) -> int:
        """What `total_steps` are without `max_steps`."""
        return -(-self.epochs * self.prompts // self.per_round) * self.steps_per_round

    @property
    def total_steps(self) -> int:
        return self.steps_of_epochs if self.max_steps is None else self.max_steps

    def epoch(self, step: int) -> float:
        """Passes over the prompts that are done with `step` steps."""
        return step * self.per_round / (self.prompts * self.steps_per_round)

    def round_of(self, step: int) -> int:
        return step // self.steps_per_round

    def indices(self, round: int) -> Indices:
        """`(per_round,)`: the prompts of round `round` (from 0)."""
        start, end = round * self.per_round, (round + 1) * self.per_round
        if not self.shares:
            return _drawn(Share(0, self.prompts, 1, (self.seed,)), start, end)
        weights = [share.weight for share in self.shares]
        bounds = zip(apportioned(weights, start), apportioned(weights, end), strict=True)
        return np.concatenate([_drawn(share, *bound) for share, bound in zip(self.shares, bounds, strict=True)])

    def steps(self, round: int, records: int) -> list[Indices]:
        """Which of a round's `records`, those of its prompts that are trained on, each of its steps holds: every pass
        all of them, in an order of its own. There must be one for each step of a pass."""
        found = []
        for number in range(self.passes):
            order = np.random.default_rng([self.seed, round, number]).permutation(records)
            found += [np.sort(part) for part in np.array_split(order, self.steps_per_pass)]
        return found


def _drawn(share: Share, start: int, end: int) -> Indices:
    """The pairs at these places of a source's own order, which is another each time it begins anew."""
    epochs = range(start // share.pairs, (end - 1) // share.pairs + 1) if end > start else ()
    parts = [np.empty(0, np.int64)]
    for epoch in epochs:
        first, last = epoch * share.pairs, (epoch + 1) * share.pairs
        positions = np.arange(max(start, first), min(end, last)) - first
        parts.append(permuted(positions, share.pairs, share.seed, epoch) + share.start)
    return np.concatenate(parts)


def apportioned(weights: Sequence[int], seats: int) -> list[int]:
    """`seats` divided by `weights`, by Webster's method: each next seat is that of the largest `weight / (2 k + 1)`
    whose holder has k so far, the first of equal ones. No part gets smaller where `seats` grows."""
    total, parts = sum(weights), len(weights)
    # No part has less than this in the end: the method's quotients are within half a seat of a common multiple of the
    # weights, which the roundings of all of them move by `parts / 2` at the most.
    counts = [max(0, (2 * weight * seats - weight * parts - total) // (2 * total)) for weight in weights]
    for _ in range(seats - sum(counts)):
        counts[max(range(parts), key=lambda i: Fraction(weights[i], 2 * counts[i] + 1))] += 1
    return counts


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
