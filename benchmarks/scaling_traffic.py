"""What DeepSpeed sends in a step and holds on a rank, counted, beside what `scaling_model.py` says; see scaling.py."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
from scaling_model import FAMILIES, build, held_bytes
from scaling_ranks import PAIR, Rows, config_of, counting, on_ranks, run_steps

from orpo_ray.costs.cluster import bytes_sent
from orpo_ray.costs.step import Network

RANKS = 2
_SMALL = 1 / 256  # of a layer's weights, and of DeepSpeed's thresholds
_THRESHOLDS = {
    "reduce_bucket_size": 5e8, "allgather_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
}  # fmt: skip
_COMMON = dict(max_position_embeddings=512, vocab_size=2000)
SIZES = {
    "OPT-1.3B": dict(**_COMMON, hidden_size=128, ffn_dim=512, num_hidden_layers=24, num_attention_heads=2),
    "Mistral-7B": dict(
        **_COMMON, hidden_size=256, intermediate_size=896, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2,
    ),
}  # fmt: skip


def counted(stage: int) -> Rows:
    """A row for each family, in bfloat16 on `RANKS` ranks.

    The networks have a 256th of a layer's weights, and DeepSpeed's thresholds are a 256th of their defaults, so buckets
    and prefetching work as at full size. A step of one micro-batch and one of two tell apart what is sent once.
    """
    import torch

    from orpo_ray.training.deepspeed_engine import DeepSpeedEngine

    scaled = {name: int(size * _SMALL) // 64 * 64 for name, size in _THRESHOLDS.items()}  # DeepSpeed aligns them
    scaled["stage3_param_persistence_threshold"] = 1000  # biases and norms stay whole, as at full size
    rows: Rows = []
    for family in FAMILIES:
        before = _tensor_bytes()
        torch.manual_seed(0)
        policy = build(family, **SIZES[family]).to(torch.bfloat16)
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        net = Network.of(policy)
        configs = [config_of(RANKS * pairs, sum(PAIR), 3, stage, "bfloat16", scaled) for pairs in (1, 2)]
        engine = DeepSpeedEngine(policy, configs[0], torch.device("cpu"))
        row: dict[str, Any] = {"network": family, "stage": stage, "layers": net.layers, "parameters": net.parameters}
        if not rows:  # a second engine would stand beside the remains of the first
            held = _held(engine, configs[0], net) - before
            model = held_bytes(stage, net.parameters, RANKS)
            row["held"] = {
                "counted": held / net.parameters,
                "model": (sum(model.values()) - model["buffers"]) / net.parameters,
            }
        sent = []
        for config in configs:  # a micro-batch on each rank, then two
            with counting() as counts:
                lines = run_steps(engine, config, net.vocabulary, counts)
            sent.append(np.subtract(lines.seen[2], lines.seen[1]))
        # What crosses to the neighbour: an all-reduced byte twice, (ranks - 1) / ranks of each.
        crossing = [(2 * reduced + moved) * (RANKS - 1) / RANKS for reduced, moved, _, _ in sent]
        row["sent"] = [
            {"micro_batches": m, "counted": size / net.parameters,
             "model": sum(bytes_sent(stage, net.parameters, m, RANKS)) / net.parameters}
            for m, size in zip((1, 2), crossing, strict=True)
        ]  # fmt: skip
        number = [float(reductions + others) for _, _, reductions, others in sent]
        row["collectives"] = {"of_step": 2 * number[0] - number[1], "of_micro_batch": number[1] - number[0]}
        rows.append(row)
    return rows


def _held(engine: Any, config: Any, net: Network) -> int:
    """Bytes of all tensors when the backward of the last step is done."""
    seen: list[int] = []
    step = engine.step

    def looking(lr: float) -> float:
        seen.append(_tensor_bytes())
        norm: float = step(lr)
        return norm

    engine.step = looking
    run_steps(engine, config, net.vocabulary)
    engine.step = step
    return seen[-1]


def _tensor_bytes() -> int:
    """Bytes of all tensors in this process, each storage once."""
    import torch

    gc.collect()
    storages = {}
    for tensor in [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]:
        for one in (tensor, tensor.grad if tensor.is_leaf else None, getattr(tensor, "ds_tensor", None)):
            if one is not None:
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def measure() -> Rows:
    rows = [row for stage in (1, 2, 3) for row in on_ranks(counted, RANKS, stage)]
    for row in rows:
        print(f"{row['network']} ZeRO-{row['stage']}, bytes a parameter: {row['sent']} {row.get('held', '')}")
        print(f"  collectives: {row['collectives']}")
    return rows
