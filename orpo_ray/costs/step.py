"""Floating-point operations of a step, of lengths and a network that may have no memory; docs/scaling.md has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.memory import SMALL_CHUNK, Recomputation

Lengths = npt.NDArray[np.int64]
"""(pairs, 1 + responses): tokens of prompt, chosen and rejected, or of more responses, or of one."""

BF16, FP32 = 2, 4  # bytes
OPTIMIZER_BYTES = 30
"""A parameter's memory traffic in AdamW: weight, m and v read and written, gradient read in float32; bfloat16 weight
written."""


@dataclass(frozen=True)
class Network:
    """A policy's size. FLOPs are of forward and backward, without recomputation."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    per_token: float
    per_prediction: float
    per_visible_pair: float

    @classmethod
    def of(cls, policy: Any) -> Network:
        flops, config = StepFlops.of(policy), policy.model.config
        return cls(
            sum(p.numel() for p in policy.parameters()), config.num_hidden_layers, config.hidden_size,
            config.vocab_size, flops.per_token, flops.per_prediction, flops.per_visible_pair,
        )  # fmt: skip


class Load(NamedTuple):
    """What a micro-batch asks of one rank."""

    tokens: float
    predictions: float
    visible: float
    """Pairs of a query and a key that it sees."""

    @classmethod
    def of(cls, lengths: Lengths, *, score_prompts: bool = True) -> Load:
        """Of these pairs, by default with prompts scored too (ORPO as the paper has it)."""
        prompt, responses = lengths[:, 0], lengths[:, 1:]
        own = (lengths * (lengths + 1) // 2).sum()
        across = (prompt[:, None] * responses).sum()
        predictions = lengths.sum() - len(lengths) if score_prompts else responses.sum()
        return cls(float(lengths.sum()), float(predictions), float(own + across))

    def times(self, number: float) -> Load:
        return Load(*(value * number for value in self))

    def flops(self, net: Network, recomputation: Recomputation = "none") -> float:
        """Operations of forward and backward. Forward is a third of them and is what is computed again: the trunk's
        under `full`, and the head's chunks but the last.
        """
        trunk = net.per_token * self.tokens + net.per_visible_pair * self.visible
        chunks = max(1.0, BF16 * self.predictions * net.vocabulary / head_bytes(recomputation))
        again = 1 / 3 if recomputation == "full" else 0.0
        return trunk * (1 + again) + net.per_prediction * self.predictions * (1 + (1 - 1 / chunks) / 3)


def head_bytes(recomputation: Recomputation) -> int:
    """Logits that the head keeps at most."""
    return SMALL_CHUNK if recomputation == "full" else LogprobHead.chunk_bytes
