"""Reference log-probs: computed once, packed, before the policy is loaded, and kept on disk.

Training then holds one model. The files lie in `cache/reference/<hash>`, named by the reference's weights and the
pairs' tokens, a piece at a time, so that an interrupted computation goes on where it stopped and any number of
workers may share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from orpo_ray.atomic import new_file
from orpo_ray.config import TrainConfig
from orpo_ray.data.dataset import PairDataset, Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.scorer import packed_scores

_PIECE = 1024  # pairs in one file


def with_reference(
    data: Pairs,
    policy: PackedPolicy,
    cache: Path,
    *,
    weights: str,
    rank: int,
    ranks: int,
    budget: int,
    barrier: Callable[[], object],
) -> Pairs:
    """`data` with its reference log-probs under `policy`, computed by all ranks together or found in `cache`, source by
    source.

    `weights`: the policy's digest (see `network_digest`). `budget`: packed tokens computed at once. `barrier` returns
    when every rank has called it.
    """

    def of_source(part: PairDataset) -> PairDataset:
        return _with_reference(part, policy, cache / reference_key(weights, part), rank, ranks, budget, barrier)

    if isinstance(data, JoinedPairs):
        return replace(data, parts=tuple(map(of_source, data.parts)))
    assert isinstance(data, PairDataset)
    return of_source(data)


def _with_reference(
    data: PairDataset,
    policy: PackedPolicy,
    folder: Path,
    rank: int,
    ranks: int,
    budget: int,
    barrier: Callable[[], object],
) -> PairDataset:
    folder.mkdir(parents=True, exist_ok=True)
    pieces = list(_pieces(len(data)))
    for index in range(rank, len(pieces), ranks):
        path = folder / f"{index:06d}.npy"
        if not path.is_file():
            _write(path, reference_logps(data, pieces[index], policy, budget))
    barrier()
    parts = [np.load(folder / f"{index:06d}.npy") for index in range(len(pieces))]
    return replace(data, reference=np.concatenate([np.empty((0, 2), np.float32), *parts]))


def load_reference(config: TrainConfig, device: torch.device) -> PackedPolicy:
    """The reference policy on `device`: `objective.reference`, or the model that training starts from."""
    name = getattr(config.objective, "reference", None)
    model = config.model
    if name is not None:
        model = model.model_copy(update={"name_or_path": name, "revision": None, "init": "pretrained"})
    return load_policy(model, seed=config.seed, device=device).eval()


def reference_key(weights: str, data: PairDataset) -> str:
    """Names the numbers that the reference of this digest gives to these pairs."""
    digest = hashlib.blake2b(weights.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(data.bounds).data)
    for start in range(0, len(data.tokens), 1 << 24):
        digest.update(np.ascontiguousarray(data.tokens[start : start + (1 << 24)]).data)
    return digest.hexdigest()


def _pieces(pairs: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, pairs, _PIECE):
        yield np.arange(start, min(start + _PIECE, pairs))


def reference_logps(
    data: PairDataset, pairs: NDArray[np.int64], policy: PackedPolicy, budget: int
) -> NDArray[np.float32]:
    """Summed log-probs `(pairs, 2)` of chosen and rejected."""
    rows = [data.pair(pair) for pair in pairs.tolist()]
    return np.array(packed_scores(policy, rows, budget), dtype=np.float32)


def _write(path: Path, sums: NDArray[np.float32]) -> None:
    with new_file(path) as new, new.open("wb") as file:
        np.save(file, sums)
