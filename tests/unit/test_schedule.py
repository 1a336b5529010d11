"""The global steps: complete, machine-independent, balanced."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data.schedule import StepSchedule, deal, permuted


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


def test_max_steps_ends_a_run_early_but_never_lengthens_it() -> None:
    assert StepSchedule(100, 10, 2, max_steps=7, seed=0).total_steps == 7
    assert StepSchedule(100, 10, 2, max_steps=70, seed=0).total_steps == 20


@given(
    tokens=st.lists(st.integers(1, 500), min_size=1, max_size=80),
    ranks=st.integers(1, 9),
    budget=st.integers(1, 1500),
)
def test_deal_loses_nothing_and_keeps_ranks_in_step(tokens: list[int], ranks: int, budget: int) -> None:
    counts = np.array(tokens)
    dealt = deal(counts, ranks, budget)
    assert len(dealt) == ranks
    assert len({len(cuts) for cuts in dealt}) == 1
    items = [int(i) for cuts in dealt for cut in cuts for i in cut]
    assert sorted(items) == list(range(len(tokens)))
    for cuts in dealt:
        for cut in cuts:
            assert counts[cut].sum() <= budget or len(cut) == 1
    loads = [sum(counts[cut].sum() for cut in cuts) for cuts in dealt]
    assert max(loads) - min(loads) <= max(tokens)
