"""From a list of pairs to this rank's packed micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.data.schedule import Indices, deal
from orpo_ray.objectives.terms import Totals


class Work(NamedTuple):
    """A global step or an evaluation, as one rank sees it."""

    cuts: list[Indices]
    """This rank's micro-batches, as pairs of the data set; an empty one keeps it in step with the others."""
    filler: int
    """The pair that an empty micro-batch computes, with weight zero."""
    totals: Totals
    tokens: int
    """Packed tokens of all ranks."""


def plan(
    data: PairDataset, indices: Indices, *, continuations: int, score_prompts: bool, rank: int, ranks: int, budget: int
) -> Work:
    """Deal `indices` to ranks and cut this rank's share into micro-batches of at most `budget` tokens."""
    lengths = data.lengths(indices)  # (pairs, 3)
    token_counts = lengths[:, : 1 + continuations].sum(axis=1)
    cuts = deal(token_counts, ranks, budget)[rank]
    nll_tokens = lengths[:, 1].sum() + (lengths[:, 0] - 1).sum() * score_prompts
    return Work(
        cuts=[indices[cut] for cut in cuts],
        filler=int(indices[np.argmin(token_counts)]),
        totals=Totals(pairs=len(indices), nll_tokens=int(nll_tokens)),
        tokens=int(token_counts.sum()),
    )


def predictions(data: PairDataset, score_prompts: bool) -> Tensor:
    """Predictions `(pairs, 3)` of prompt, chosen and rejected of every pair, as `pack` counts them."""
    lengths = data.lengths()
    lengths[:, 0] = (lengths[:, 0] - 1) * score_prompts
    return torch.from_numpy(lengths)


def packed(data: PairDataset, work: Work, *, continuations: int, score_prompts: bool) -> Iterator[PackedBatch]:
    """The micro-batches of `work`, packed one at a time."""
    for cut in work.cuts:
        pairs = cut.tolist() or [work.filler]
        examples = [data.pair(pair)[: 1 + continuations] for pair in pairs]
        yield pack(examples, score_prompts=score_prompts, weight=1.0 if len(cut) else 0.0)
