"""Model FLOPs of a training step, for MFU: what the mathematics needs, not what recomputation adds."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.critic import ActorCritic
from orpo_ray.modeling.experts import shares, whole_shape
from orpo_ray.modeling.linear import product
from orpo_ray.modeling.policy import PackedPolicy

if TYPE_CHECKING:
    from orpo_ray.modeling.scorer import Scorer

# A multiply and an add for each of: the forward product, the gradient of its input, that of its weight.
_TRAINED, _FROZEN = 6.0, 4.0
_FIRST_PRODUCTS = 3  # that are not timed


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of one forward and backward of a packed batch."""

    per_token: float
    per_prediction: float
    per_visible_pair: float
    """Of a query and a key that it sees, in all layers."""

    @classmethod
    def of(cls, scorer: Scorer) -> StepFlops:
        """Six per token and trained weight of the trunk's matrices (four where it is frozen; of experts those that a
        token goes to), the same per prediction and weight of a policy's head, twelve per layer and width of attention
        for a visible pair; of a critic beside the policy too.

        A reward model's head is one row, read once for a sequence, or a prediction: too little to count.
        """
        found = [cls._of(scorer.model, isinstance(scorer, PackedPolicy))]
        if isinstance(scorer, ActorCritic):
            found.append(cls._of(scorer.critic.model, predicts=False))
        return cls(*map(sum, zip(*map(astuple, found), strict=True)))

    @classmethod
    def _of(cls, network: PreTrainedModel, predicts: bool) -> StepFlops:
        """`predicts`: whether its output layer is asked for each prediction."""
        embeddings = {id(m.weight) for m in network.modules() if isinstance(m, torch.nn.Embedding)}
        per_prediction = 0.0
        if predicts:
            head = getattr(network.get_output_embeddings(), "weight", None)
            embeddings.add(id(head))
            per_prediction = 0.0 if head is None else _operations(head)
        config = network.config.get_text_config()
        experts = shares(network, config)
        trunk = [
            experts.get(name, 1.0) * _operations(weight)
            for name, weight in network.named_parameters()
            if (len(whole_shape(weight)) == 2 or name in experts)
            and id(weight) not in embeddings
            and not name.endswith("bias")
        ]
        heads = getattr(config, "num_attention_heads", None) or 0  # of a network without attention
        width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
        return cls(
            per_token=sum(trunk),
            per_prediction=per_prediction,
            per_visible_pair=12.0 * config.num_hidden_layers * width * heads,
        )

    def __call__(self, batch: PackedBatch) -> float:
        start, end, prompt_start, prompt_end = np.asarray(batch.layout.segments).T
        queries = end - start
        visible = float((queries * (prompt_end - prompt_start) + queries * (queries + 1) / 2).sum())
        return (
            self.per_token * batch.tokens
            + self.per_prediction * batch.targets.numel()
            + self.per_visible_pair * visible
        )


def _operations(weight: torch.nn.Parameter) -> float:
    """Per token, of the whole parameter, also where ZeRO-3 holds a part of it here."""
    elements = int(getattr(weight, "ds_numel", weight.numel()))
    return (_TRAINED if weight.requires_grad else _FROZEN) * elements


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """The best matmul rate (FLOP/s) that this device reached in a short trial: the denominator of MFU.

    The clock begins when the first products are done: they start cuBLAS or compile a kernel, and a device that has
    idled has yet to raise its frequency.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)

    def timed() -> float:
        start = time.perf_counter()
        product(a, b)
        if device.type == "cuda":  # a call returns before its product is there
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(_FIRST_PRODUCTS):
        timed()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, timed())
    return 2.0 * size**3 / best
