"""Reference log-probs on disk: the policy's own numbers, computed once, resumed piece by piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, build, random_groups, random_pairs

from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.packing import pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training import reference
from orpo_ray.training.reference import reference_key, with_reference


def data(seed: int = 1) -> PairDataset:
    return random_pairs(10, seed)


def policy() -> PackedPolicy:
    return PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))


def attached(pairs: PairDataset, model: PackedPolicy, cache: Path) -> PairDataset:
    """By two ranks, one after the other; the second finds the first's pieces."""
    weights = digest(model)

    def second_rank() -> None:
        with_reference(pairs, model, cache, weights=weights, rank=1, ranks=2, budget=60, barrier=lambda: None)

    return with_reference(pairs, model, cache, weights=weights, rank=0, ranks=2, budget=60, barrier=second_rank)


def digest(model: PackedPolicy) -> str:
    return network_digest(model.model, model.model.state_dict())


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_PIECE", 3)


def test_numbers_are_the_policys_own(tmp_path: Path) -> None:
    pairs, model = data(), policy()
    found = attached(pairs, model, tmp_path).reference
    assert found is not None
    for i in range(len(pairs)):
        with torch.no_grad():
            expected = model(pack([pairs.pair(i)], score_prompts=False))[1:]
        np.testing.assert_allclose(found[i], expected.numpy(), rtol=1e-5)


def test_subsets_keep_their_reference(tmp_path: Path) -> None:
    whole = attached(data(), policy(), tmp_path)
    part = whole.subset(np.array([7, 2]))
    assert whole.reference is not None
    assert part.reference is not None
    np.testing.assert_array_equal(part.reference, whole.reference[[7, 2]])


def test_of_any_number_of_responses_and_of_mismatched_texts(tmp_path: Path) -> None:
    data, model = random_groups(10, rule="labels"), policy()
    with_partners = replace(data, mismatched=Mismatched(data, 0, 20))
    found = with_reference(
        with_partners, model, tmp_path, weights="w", rank=0, ranks=1, budget=60, barrier=lambda: None
    )
    assert found.reference is not None and found.mismatched is not None and found.mismatched.reference is not None
    np.testing.assert_array_equal(np.isnan(found.reference), data.ranks() < 0)
    for i in range(10):
        for part in (found, found.mismatched):
            with torch.no_grad():
                expected = model(pack([part.pair(i)], score_prompts=False))[1:]
            np.testing.assert_allclose(part.reference[i, : len(expected)], expected.numpy(), rtol=1e-5)
    parts = [Mismatched(data, 0, 20), Mismatched(data, 1, 20), Mismatched(data, 0, 21)]
    assert len({reference_key("w", part) for part in (data, data.subset(np.arange(9)), *parts)}) == 5


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    pairs, model = data(), policy()
    first = attached(pairs, model, tmp_path).reference
    files = sorted(tmp_path.glob("*/*.npy"))
    assert len(files) == 4
    written = {file: file.stat().st_mtime_ns for file in files}
    files[2].unlink()
    second = attached(pairs, model, tmp_path).reference
    np.testing.assert_array_equal(first, second)
    assert {file for file in files if file.stat().st_mtime_ns != written[file]} == {files[2]}


def test_other_weights_or_pairs_are_another_reference() -> None:
    model, other = policy(), policy()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    named = ((model, data()), (other, data()), (model, data(seed=2)))
    keys = {reference_key(digest(reference), pairs) for reference, pairs in named}
    assert len(keys) == 3
    assert reference_key(digest(policy()), data()) in keys
