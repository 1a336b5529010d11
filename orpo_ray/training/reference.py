"""Reference log-probs: computed once, packed, before the policy is loaded, and kept on disk.

Training then holds one model. The files lie in `cache/reference/<hash>`, named by the reference's weights and the
records' tokens, a piece at a time, so that an interrupted computation goes on where it stopped and any number of
workers may share it. KTO's prompts with another prompt's response have theirs too.
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
from orpo_ray.data.dataset import PairDataset, Pairs, Texts
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.scorer import packed_scores

_PIECE = 1024  # records in one file


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

    def log_probs(part: PairDataset | Mismatched) -> NDArray[np.float32]:
        return _log_probs(part, policy, cache / reference_key(weights, part), rank, ranks, budget, barrier)

    def of_source(part: PairDataset) -> PairDataset:
        whole, other = replace(part, reference=log_probs(part)), part.mismatched
        return whole if other is None else replace(whole, mismatched=replace(other, reference=log_probs(other)))

    if isinstance(data, JoinedPairs):
        return JoinedPairs(data.names, tuple(map(of_source, data.parts)))
    assert isinstance(data, PairDataset)
    return of_source(data)


def _log_probs(
    data: Texts, policy: PackedPolicy, folder: Path, rank: int, ranks: int, budget: int, barrier: Callable[[], object]
) -> NDArray[np.float32]:
    """`(records, K)`, as `reference_logps` gives them, by way of files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = list(_pieces(len(data)))
    for index in range(rank, len(pieces), ranks):
        path = folder / f"{index:06d}.npy"
        if not path.is_file():
            _write(path, reference_logps(data, pieces[index], policy, budget))
    barrier()
    width = int(data.counts().max(initial=1))
    found = [_widened(np.load(folder / f"{index:06d}.npy"), width) for index in range(len(pieces))]
    return np.concatenate([np.empty((0, width), np.float32), *found])


def load_reference(config: TrainConfig, device: torch.device) -> PackedPolicy:
    """The reference policy on `device`: `objective.reference`, or the model that training starts from."""
    name = _named(config)
    model = config.model
    if name is not None:
        model = model.model_copy(update={"name_or_path": name, "revision": None, "init": "pretrained"})
    return load_policy(model, seed=config.seed, device=device).eval()


def reference_name(config: TrainConfig) -> str:
    """What the reference is called in messages: the key that names it, and what that says."""
    name, key = _named(config), "objective.reference"
    if name is None:
        return f"model.name_or_path: {config.model.name_or_path}, the reference"
    return f"{key if config.objective.compares is config.objective else 'objective.pairs.reference'}: {name}"


def _named(config: TrainConfig) -> str | None:
    name: str | None = getattr(config.objective.compares, "reference", None)
    return name


def reference_key(weights: str, data: PairDataset | Mismatched) -> str:
    """Names the numbers that the reference of this digest gives to these records."""
    digest = hashlib.blake2b(weights.encode(), digest_size=16)
    data.identify(digest)
    return digest.hexdigest()


def _pieces(pairs: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, pairs, _PIECE):
        yield np.arange(start, min(start + _PIECE, pairs))


def reference_logps(data: Texts, pairs: NDArray[np.int64], policy: PackedPolicy, budget: int) -> NDArray[np.float32]:
    """Summed log-probs `(records, K)` of the responses, of pairs `(pairs, 2)` of chosen and rejected; NaN where a
    record has fewer responses than another."""
    rows = [data.pair(pair) for pair in pairs.tolist()]
    scores = packed_scores(policy, rows, budget)
    table = np.full((len(rows), max(map(len, scores))), np.nan, np.float32)
    for row, given in zip(table, scores, strict=True):
        row[: len(given)] = given
    return table


def _widened(table: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=np.nan)


def _write(path: Path, sums: NDArray[np.float32]) -> None:
    with new_file(path) as new, new.open("wb") as file:
        np.save(file, sums)
