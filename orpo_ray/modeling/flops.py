"""Model FLOPs of a training step, for MFU: what the mathematics needs, not what recomputation adds."""

from __future__ import annotations

import time

import torch

from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.scorer import Scorer


def training_flops(policy: Scorer, batch: PackedBatch) -> float:
    """Floating-point operations of one forward and backward of `batch`.

    Six per token and weight of the trunk's matrices, six per prediction and weight of a policy's head (a reward
    model's is one row), twelve per width and visible query-key pair of each layer's attention.
    """
    if isinstance(policy, PackedPolicy):
        head, predictions = policy.model.get_output_embeddings().weight, batch.targets.numel()
    else:
        head, predictions = policy.model.score.weight, len(batch.layout.segments)
    embeddings = {id(m.weight) for m in policy.modules() if isinstance(m, torch.nn.Embedding)} | {id(head)}
    trunk = sum(_elements(p) for p in policy.parameters() if _dims(p) == 2 and id(p) not in embeddings)
    config = policy.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width *= config.num_attention_heads
    visible = sum(
        (end - start) * (p_end - p_start) + (end - start) * (end - start + 1) / 2
        for start, end, p_start, p_end in batch.layout.segments
    )
    matmuls: float = 6.0 * (batch.tokens * trunk + predictions * _elements(head))
    attention: float = 12.0 * config.num_hidden_layers * width * visible
    return matmuls + attention


def _elements(parameter: torch.nn.Parameter) -> int:
    """Of the whole parameter, also where ZeRO-3 holds a part of it here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _dims(parameter: torch.nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """The best matmul rate (FLOP/s) that this device reached in a short trial: the denominator of MFU."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
