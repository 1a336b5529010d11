"""Held-out pairs: whole prompts, drawn by the seed, listed on the disk in memory that does not grow."""

from __future__ import annotations

import mmap
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orpo_ray.data import split
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.schedule import mix64
from orpo_ray.data.split import split_by_prompt
from orpo_ray.errors import UserError


def in_memory(hashes: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """The rule as it would be written if memory were no matter: which pairs are held out."""
    prompts, of_pair, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(mix64(prompts ^ mix64(np.array([seed % 2**64], np.uint64))), kind="stable")
    held = 1 + int(np.searchsorted(np.cumsum(counts[order]), fraction * len(hashes)))
    is_held = np.zeros(len(prompts), bool)
    is_held[order[:held]] = True
    return is_held[of_pair]


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.01, 0.6), st.integers(0, 2**70),
    st.sampled_from([1, 7, 1000]),
)  # fmt: skip
def test_held_out_prompts(prompts: list[int], fraction: float, seed: int, chunk: int) -> None:
    hashes = np.array(prompts, np.uint64) * np.uint64(0x1234567890ABCDEF)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "_CHUNK", chunk)
        try:
            train, held = split_by_prompt(hashes, fraction, seed, "pairs", Path(folder))
        except UserError:
            # Refused only where some single prompt is needed to reach the fraction and none would be left.
            assert min(len(prompts) - prompts.count(prompt) for prompt in prompts) < fraction * len(prompts)
            assert list(Path(folder).iterdir()) == []
            return
        again = split_by_prompt(hashes, fraction, seed, "pairs", Path(folder))
    assert sorted([*train, *held]) == list(range(len(prompts)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert not set(hashes[train]) & set(hashes[held])  # pairs of one prompt never part
    assert len(train) > 0
    assert len(held) >= fraction * len(prompts) - 1e-9
    # No prompt more than needed: without the one held out last the fraction is not reached.
    assert min(len(held) - (hashes[held] == prompt).sum() for prompt in hashes[held]) < fraction * len(prompts)
    assert held.tolist() == np.flatnonzero(in_memory(hashes, fraction, seed)).tolist()
    assert (again[0] == train).all() and (again[1] == held).all()


def test_each_fraction_and_seed_has_its_lists(tmp_path: Path) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    draws = [(0.05, 0), (0.05, 1), (0.3, 0), (0.05, 0)]
    lists = [split_by_prompt(hashes, fraction, seed, "pairs", tmp_path)[1].tolist() for fraction, seed in draws]
    assert lists[0] == lists[3] != lists[1]
    assert set(lists[0]) < set(lists[2])  # more are held out in the same order
    assert sum(1 for _ in tmp_path.iterdir()) == 3  # and nothing unfinished


def test_a_split_takes_no_memory_that_grows_with_the_pairs(tmp_path: Path) -> None:
    def peak(pairs: int) -> int:
        hashes = np.random.default_rng(0).integers(0, 2**64, pairs, np.uint64)
        tracemalloc.start()
        train, held = split_by_prompt(hashes, 0.05, 0, "pairs", tmp_path / str(pairs))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(train) + len(held) == pairs
        for rows in (train, held):
            assert rows.base is not None and isinstance(rows.base.obj, mmap.mmap)
        return highest

    sizes = (2**19, 2**21)
    for pairs in sizes:
        (tmp_path / str(pairs)).mkdir()
    small, large = map(peak, sizes)
    assert large < 1.02 * small


def test_a_view_of_the_lists_copies_none(tmp_path: Path) -> None:
    bounds = np.arange(400).reshape(100, 4)
    data = PairDataset(np.arange(400, dtype=np.int32), bounds, np.arange(100))
    train, _ = split_by_prompt(np.arange(100, dtype=np.uint64), 0.1, 0, "pairs", tmp_path)
    view = data.subset(train)
    assert view.rows is train and view.source_bounds is bounds
    assert view.lengths(np.array([3])).tolist() == [[1, 1, 1]]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot hold the split: Not a directory; set storage\.cache"):
        split_by_prompt(np.arange(9, dtype=np.uint64), 0.2, 0, "pairs", tmp_path / "file")
