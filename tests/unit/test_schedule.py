"""The global steps: complete, machine-independent, balanced; and what a step reads of a large data set."""

from __future__ import annotations

import heapq
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data.cache import CacheWriter, Kept, read_or_build
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.records import Account
from orpo_ray.data.schedule import Indices, StepSchedule, deal, permuted
from orpo_ray.data.tokenization import Tokenized


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_permuted_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


def test_permuted_depends_on_seed_and_epoch_and_looks_shuffled() -> None:
    size = 10_000
    orders = [permuted(np.arange(size), size, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
        for other in orders[:i]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.05


def test_permuted_never_touches_the_whole_data_set() -> None:
    ten_billion = 10**10
    drawn = permuted(np.arange(64), ten_billion, 0, 0)
    assert len(set(drawn.tolist())) == 64
    assert drawn.min() >= 0 and drawn.max() < ten_billion


@given(pairs=st.integers(1, 200), batch=st.integers(1, 64), epochs=st.integers(1, 3))
def test_every_epoch_meets_every_pair_once(pairs: int, batch: int, epochs: int) -> None:
    schedule = StepSchedule(pairs, batch, epochs, max_steps=None, seed=3)
    for epoch in range(epochs):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        met = np.concatenate([schedule.indices(step) for step in steps])
        assert sorted(met.tolist()) == list(range(pairs))
    assert schedule.total_steps == epochs * schedule.steps_per_epoch


def test_max_steps_wins_over_epochs() -> None:
    """Fewer end a run early, with the steps that it would have had; more repeat epochs, each in another order."""
    whole = StepSchedule(100, 10, 2, max_steps=None, seed=0)
    early, longer = (StepSchedule(100, 10, 2, max_steps=steps, seed=0) for steps in (7, 35))
    assert [schedule.total_steps for schedule in (early, whole, longer)] == [7, 20, 35]
    for step in range(20):
        assert whole.indices(step).tolist() == longer.indices(step).tolist() == early.indices(step).tolist()
    epochs = [np.concatenate([longer.indices(10 * epoch + i) for i in range(10)]).tolist() for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@given(
    tokens=st.lists(st.integers(1, 500), min_size=1, max_size=80),
    ranks=st.integers(1, 9),
    budget=st.integers(1, 1500),
)
def test_deal_loses_nothing_and_keeps_ranks_in_step(tokens: list[int], ranks: int, budget: int) -> None:
    counts = np.array(tokens)
    _check_properties(counts, ranks, budget)


@pytest.mark.parametrize("budget", [2_000, 4_096, 8_192, 100_000])
def test_deal_of_4096_pairs_over_512_ranks(budget: int) -> None:
    counts = np.random.default_rng(0).lognormal(6.3, 0.9, 4096).astype(np.int64).clip(8, 3_300)
    loads = _check_properties(counts, 512, budget)
    assert sorted(loads) == sorted(_longest_first_to_the_least_loaded(counts.tolist(), 512))
    assert max(loads) / (sum(loads) / 512) < 1.02


def _check_properties(counts: Indices, ranks: int, budget: int) -> list[int]:
    """Returns the tokens of each rank."""
    dealt = deal(counts, ranks, budget)
    assert len(dealt) == ranks
    assert len({len(cuts) for cuts in dealt}) == 1
    items = [int(i) for cuts in dealt for cut in cuts for i in cut]
    assert sorted(items) == list(range(len(counts)))
    for cuts in dealt:
        sizes = [int(counts[cut].sum()) for cut in cuts]
        assert all(size <= budget or len(cut) == 1 for size, cut in zip(sizes, cuts, strict=True))
        # No two micro-batches could have been one.
        assert all(a + b > budget for a, b in itertools.combinations([size for size in sizes if size], 2))
    loads = [sum(int(counts[cut].sum()) for cut in cuts) for cuts in dealt]
    assert max(loads) - min(loads) <= counts.max()
    return loads


def _longest_first_to_the_least_loaded(counts: list[int], ranks: int) -> list[int]:
    """Graham's rule, as it is written in books: the tokens of each rank."""
    loads = [0] * ranks
    for count in sorted(counts, reverse=True):
        heapq.heapreplace(loads, loads[0] + count)
    return loads


def test_deal_by_hand() -> None:
    def as_lists(counts: list[int], ranks: int, budget: int) -> list[list[list[int]]]:
        return [[cut.tolist() for cut in cuts] for cuts in deal(np.array(counts), ranks, budget)]

    # Equal pairs go round the ranks in their order.
    assert as_lists([3, 3, 3, 3], 2, 100) == [[[0, 2]], [[1, 3]]]
    # Best fit: 4 fills up the 6, though the 5 has more room; 20 is longer than any budget and stands alone.
    assert as_lists([5, 6, 4, 3, 2, 20], 1, 10) == [[[5], [1, 2], [0, 3, 4]]]
    # A rank with less to do gets empty micro-batches; one with nothing, too.
    assert as_lists([10, 9, 1], 3, 5) == [[[0]], [[1]], [[2]]]
    assert as_lists([4, 4, 4], 2, 4) == [[[0], [2]], [[1], []]]
    assert as_lists([4], 2, 4) == [[[0]], [[]]]


class TestSubsets:
    data = PairDataset(
        tokens=np.arange(100, 112, dtype=np.int32),
        source_bounds=np.array([[0, 1, 2, 3], [3, 5, 6, 7], [7, 8, 10, 12]]),
        source_record_ids=np.array([4, 7, 9]),
        reference=np.array([[-1, -2], [-3, -4], [-5, -6]], np.float32),
    )

    def test_a_subset_of_a_subset(self) -> None:
        part = self.data.subset(np.array([2, 0, 1])).subset(np.array([0, 2]))
        assert len(part) == 2
        assert part.record_ids.tolist() == [9, 7]
        assert part.bounds.tolist() == [[7, 8, 10, 12], [3, 5, 6, 7]]
        assert part.lengths().tolist() == [[1, 2, 2], [2, 1, 1]]
        assert part.lengths(np.array([1])).tolist() == [[2, 1, 1]]
        assert [ids.tolist() for ids in part.pair(1)] == [[103, 104], [105], [106]]
        assert part.reference is not None and part.reference.tolist() == [[-5, -6], [-3, -4]]

    def test_a_subset_copies_no_bounds(self) -> None:
        part = self.data.subset(np.array([1]))
        assert part.source_bounds is self.data.source_bounds
        assert part.source_record_ids is self.data.source_record_ids
        assert part.tokens is self.data.tokens


def test_tokens_are_mapped_for_random_access(tmp_path: Path) -> None:
    """With read-ahead each pair would drag in megabytes of its neighbours; bounds, a few bytes a pair, may have it."""

    def build(writer: CacheWriter) -> Account:
        writer.write([Kept(0, Tokenized([1, 2], ([3], [4]), False, (False, False)), (0, 1), 0)])
        return Account(read=1, kept=1)

    pairs = read_or_build(tmp_path, "entry", build).pairs
    assert [ids.tolist() for ids in pairs.pair(0)] == [[1, 2], [3], [4]]
    mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())

    def flags(name: str) -> list[str]:
        mapping = next(one for one in mappings if one.partition("\n")[0].endswith(str(tmp_path / "entry" / name)))
        return mapping.partition("VmFlags:")[2].split()

    assert "rr" in flags("tokens.bin") and "rr" not in flags("bounds.bin")
