"""From a list of pairs to this rank's packed micro-batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.data.schedule import Indices, deal
from orpo_ray.objectives.terms import Totals


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


def plan(
    data: PairDataset, indices: Indices, *, continuations: int, score_prompts: bool, rank: int, ranks: int, budget: int
) -> Work:
    """Deal `indices` to ranks and cut this rank's share into micro-batches of at most `budget` tokens."""
    lengths = data.lengths(indices)  # (pairs, 3)
    token_counts = lengths[:, : 1 + continuations].sum(axis=1)
    filler = Cut(indices[token_counts.argmin()][None], weight=0.0)
    nll_tokens = lengths[:, 1].sum() + (lengths[:, 0] - 1).sum() * score_prompts
    return Work(
        cuts=[Cut(indices[cut], 1.0) if len(cut) else filler for cut in deal(token_counts, ranks, budget)[rank]],
        totals=Totals(pairs=len(indices), nll_tokens=int(nll_tokens)),
        tokens=int(token_counts.sum()),
    )


def predictions(data: PairDataset, score_prompts: bool) -> Tensor:
    """Predictions `(pairs, 3)` of prompt, chosen and rejected of every pair, as `pack` counts them."""
    lengths = data.lengths()
    lengths[:, 0] = (lengths[:, 0] - 1) * score_prompts
    return torch.from_numpy(lengths)


def packed(data: PairDataset, cut: Cut, *, continuations: int, score_prompts: bool) -> PackedBatch:
    """One micro-batch, packed."""
    examples = [data.pair(pair)[: 1 + continuations] for pair in cut.pairs.tolist()]
    return pack(examples, score_prompts=score_prompts, weight=cut.weight)


def reference_of(data: PairDataset, pairs: Indices | slice, device: torch.device) -> Tensor | None:
    """Reference log-prob sums `(pairs, 2)`, where the data has them."""
    return None if data.reference is None else torch.from_numpy(data.reference[pairs]).to(device)
