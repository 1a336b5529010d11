"""The baseline: ORPO as Hugging Face's trainers compute it, over padded rows with all their logits.

As in TRL, chosen and rejected are one batch, so a prompt is computed twice and every row is as long as the longest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from orpo_ray.doctor.gpu.sizes import Example


class PaddedBatch(NamedTuple):
    """Rows of all chosen, then of all rejected."""

    ids: Tensor
    """`(2 pairs, longest)` int64."""
    real: Tensor
    """The same: 1 where there is a token."""
    in_response: Tensor
    """The same: 1 where it is one of a response."""


def collate(examples: list[Example], place: torch.device) -> PaddedBatch:
    rows = [np.r_[example[0], example[side]] for side in (1, 2) for example in examples]
    prompts = [len(example[0]) for _ in (1, 2) for example in examples]
    found = np.zeros((3, len(rows), max(map(len, rows))), np.int64)
    for ids, real, in_response, row, prompt in zip(*found, rows, prompts, strict=True):
        ids[: len(row)], real[: len(row)], in_response[prompt : len(row)] = row, 1, 1
    return PaddedBatch(*torch.from_numpy(found).to(place))


def padded_loss(network: PreTrainedModel, batch: PaddedBatch, lambda_: float) -> Tensor:
    """Scalar: NLL of prompt and chosen per token, plus `lambda_` times the odds-ratio loss."""
    logits = network(input_ids=batch.ids, attention_mask=batch.real, use_cache=False).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(2, batch.ids[:, 1:, None])[..., 0]  # (2 pairs, longest - 1)
    real, in_response = batch.real[:, 1:], batch.in_response[:, 1:]
    pairs = len(logps) // 2
    nll = -(logps * real)[:pairs].sum() / real[:pairs].sum()
    means = (logps * in_response).sum(1) / in_response.sum(1)
    odds = means - torch.log1p(-means.exp())
    loss: Tensor = nll - lambda_ * logsigmoid(odds[:pairs] - odds[pairs:]).mean()
    return loss
