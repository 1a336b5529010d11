"""What DeepSpeed sends and holds, and what a layer keeps for backward: counted on small networks; see scaling.py."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from scaling_model import FAMILIES, Network, build
from scaling_ranks import PAIR, as_rank, config_of, counting, engine_of, on_ranks, pairs_of, run_steps

_SMALL = 1 / 256  # of a layer's weights, and of DeepSpeed's thresholds


def traffic(stage: int) -> list[dict[str, Any]]:
    """What DeepSpeed sends in a step, for each network, and holds on a rank; in bfloat16 on two ranks.

    The networks have a 256th of a layer's weights, and DeepSpeed's thresholds are a 256th of their defaults, so buckets
    and prefetching work as at full size. A step of one micro-batch and one of two tell apart what is sent once. Bytes
    are for each parameter.
    """
    import torch

    thresholds = {
        "reduce_bucket_size": 5e8, "allgather_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7,
        "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
    }  # fmt: skip
    scaled = {name: int(size * _SMALL) // 64 * 64 for name, size in thresholds.items()}  # DeepSpeed aligns them
    scaled["stage3_param_persistence_threshold"] = 1000  # biases and norms stay whole, as at full size
    rows = []
    for family in FAMILIES:
        before = _tensor_bytes()
        torch.manual_seed(0)
        policy = build(family, **_small(family)).to(torch.bfloat16)
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        net = Network.of(policy)
        configs = [config_of(2 * pairs, sum(PAIR), 3, stage, "bfloat16", scaled) for pairs in (1, 2)]
        engine = engine_of(policy, configs[0], stage)
        row: dict[str, Any] = {"network": family, "stage": stage, "layers": net.layers, "parameters": net.parameters}
        if not rows:  # a second engine would stand beside the remains of the first
            with _watching_update(engine, before, net.parameters) as held:
                run_steps(engine, configs[0], net.vocabulary)
            row["held_bytes"] = held
        sent = []
        for config in configs:  # a micro-batch on each rank, then two
            with counting(stage) as counts:
                seen = run_steps(engine, config, net.vocabulary, counts).seen
            sent.append(np.subtract(seen[2], seen[1]))
        per = np.array([net.parameters, net.parameters, 1, 1])
        row["of_a_micro_batch"] = ((sent[1] - sent[0]) / per).tolist()
        row["of_a_step"] = ((2 * sent[0] - sent[1]) / per).tolist()
        rows.append(row)
    return rows


def _small(family: str) -> dict[str, int]:
    common = dict(max_position_embeddings=512, vocab_size=2000)
    if family == "OPT-1.3B":
        return dict(**common, hidden_size=128, ffn_dim=512, num_hidden_layers=24, num_attention_heads=2)
    return dict(
        **common, hidden_size=256, intermediate_size=896, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip


@contextmanager
def _watching_update(engine: Any, before: int, parameters: int) -> Iterator[dict[str, float]]:
    """Bytes of tensors for each parameter when backward is done, and when AdamW updates."""
    import torch

    held: dict[str, float] = {}
    step, update = engine.step, torch.optim.AdamW.step

    def engine_step(lr: float) -> float:
        held["after backward"] = (_tensor_bytes() - before) / parameters
        norm: float = step(lr)
        return norm

    def adamw_step(self: Any, *arguments: Any, **options: Any) -> Any:
        held["in the update"] = max(held.get("in the update", 0.0), (_tensor_bytes() - before) / parameters)
        return update(self, *arguments, **options)

    engine.step, torch.optim.AdamW.step = engine_step, adamw_step  # type: ignore[method-assign]
    try:
        yield held
    finally:
        engine.step = step
        torch.optim.AdamW.step = update  # type: ignore[method-assign]


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


def saved_bytes(family: str) -> float:
    """Bytes that a layer keeps for backward without checkpointing, a token and unit of width, in bfloat16.

    Counted on the small network as the difference that a layer makes; masks, which CUDA's kernel does not take, left
    out.
    """
    import torch

    from orpo_ray.data.packing import pack

    def kept(layers: int) -> tuple[int, int]:
        policy = build(family, **{**_small(family), "num_hidden_layers": layers}).to(torch.bfloat16)
        own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.dtype is not torch.bool:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        data = pairs_of(4, 2000)
        batch = pack([data.pair(pair) for pair in range(4)], score_prompts=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sums = policy(batch)
        del sums
        return sum(storages.values()), batch.tokens

    (three, tokens), (two, _) = kept(3), kept(2)
    return (three - two) / tokens / _small(family)["hidden_size"]


def measure() -> dict[str, Any]:
    counted = [row for stage in (0, 1, 2, 3) for row in on_ranks(__file__, 2, str(stage))]
    for row in counted:
        print(f"{row['network']} ZeRO-{row['stage']}: {row['of_a_step']} + {row['of_a_micro_batch']} a micro-batch")
    print("tensors held, bytes a parameter:", [row["held_bytes"] for row in counted if "held_bytes" in row])
    saved = {family: saved_bytes(family) for family in FAMILIES}
    print(f"saved for backward, bytes a layer, token and unit of width: {saved}")
    return {"traffic": counted, "saved_bytes": saved}


if __name__ == "__main__":
    as_rank(lambda: traffic(int(sys.argv[1])))
