"""The cost model of a training step; docs/scaling.md tells it in formulas.

Parameters and floating-point operations are the trainer's own counts (`orpo_ray/costs`), of the network built
without memory. What DeepSpeed sends and holds is written here and counted in `scaling_traffic.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from orpo_ray.costs.cluster import Cluster, bytes_sent
from orpo_ray.costs.step import BF16, FP32, OPTIMIZER_BYTES, Lengths, Load, Network
from orpo_ray.data.schedule import deal
from orpo_ray.modeling.memory import Recomputation

FAMILIES = ("OPT-1.3B", "Mistral-7B")


def build(family: str, **sizes: int) -> Any:
    """A policy of a family with these sizes in place of those of OPT-1.3B or Mistral-7B-v0.1; random weights."""
    from transformers import AutoModelForCausalLM, MistralConfig, OPTConfig

    from orpo_ray.modeling.attention import NAME
    from orpo_ray.modeling.policy import PackedPolicy

    if family == "OPT-1.3B":
        large = dict(
            vocab_size=50272, hidden_size=2048, num_hidden_layers=24, ffn_dim=8192, num_attention_heads=32,
            max_position_embeddings=2048,
        )  # fmt: skip
        merged = {**large, **sizes}
        config: Any = OPTConfig(**merged, word_embed_proj_dim=merged["hidden_size"], dropout=0.0)
    else:
        config = MistralConfig(**sizes, sliding_window=4096)  # its defaults are those of the 7B
    return PackedPolicy(AutoModelForCausalLM.from_config(config, attn_implementation=NAME)).train()


def network(family: str) -> Network:
    """The real network, built on torch's meta device."""
    import torch

    with torch.device("meta"):
        return Network.of(build(family))


# Compute


Step = list[list[Load]]
"""[micro-batch][rank]."""


def steps_of(lengths: Lengths, pairs: int, ranks: int, budget: int, samples: int) -> list[Step]:
    """`samples` global steps of `pairs` pairs drawn from `lengths`, dealt by the trainer's own code."""
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(samples):
        drawn = lengths[rng.integers(0, len(lengths), pairs)]
        dealt = deal(drawn.sum(axis=1), ranks, budget)
        steps.append([[Load.of(drawn[cut]) for cut in cuts] for cuts in zip(*dealt, strict=True)])
    return steps


# Communication


class Collectives(NamedTuple):
    """How many collectives a step takes whatever its micro-batches (small ones: biases and norms, one by one), and how
    many each micro-batch.
    """

    of_step: float
    of_micro_batch: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the busiest rank."""

    compute: float
    beside: float
    """Communication that can run beside computation."""
    in_turn: float
    """Communication that cannot."""
    optimizer: float
    input: float

    @property
    def communication(self) -> float:
        return self.beside + self.in_turn

    @property
    def best(self) -> float:
        """All that can overlap does."""
        return max(max(self.compute, self.beside) + self.in_turn + self.optimizer, self.input)

    @property
    def worst(self) -> float:
        """Nothing overlaps but the preparation of input, which has a thread of its own."""
        return max(self.compute + self.communication + self.optimizer, self.input)

    @property
    def limit(self) -> str:
        costs = {"compute": self.compute, "communication": self.communication, "input": self.input}
        return max(costs, key=lambda name: costs[name])


def step_time(
    net: Network, steps: list[Step], collectives: Collectives, cluster: Cluster, input_seconds: float, stage: int,
    recomputation: Recomputation,
) -> StepTime:  # fmt: skip
    """Mean over `steps`. Ranks meet at every micro-batch's collectives, so it lasts as long as its longest share."""
    ranks = len(steps[0][0])
    compute = [sum(max(load.flops(net, recomputation) for load in cut) for cut in step) for step in steps]
    micro_batches = float(np.mean([len(step) for step in steps]))
    beside, in_turn = (size / cluster.rate(ranks) for size in bytes_sent(stage, net.parameters, micro_batches, ranks))
    owned = net.parameters / ranks
    return StepTime(
        compute=float(np.mean(compute)) / (cluster.peak * cluster.utilisation),
        beside=beside + collectives.of_micro_batch * micro_batches * cluster.latency(ranks),
        in_turn=in_turn + collectives.of_step * cluster.latency(ranks, small=True),
        optimizer=owned * OPTIMIZER_BYTES / cluster.memory_bandwidth,
        input=input_seconds,
    )


# Memory


def held_bytes(stage: int, parameters: int, ranks: int) -> dict[str, float]:
    """Bytes on each GPU when backward is done, in bfloat16 with float32 masters, DeepSpeed's buffers at their defaults.

    Gradients add up in float32; ZeRO-1 keeps whole bfloat16 ones beside them. A bucket holds 5e8 gradients. ZeRO-2 has
    two, in bfloat16, since reduction overlaps, and a float32 copy of the one that is reduced; ZeRO-3 has one in float32
    and a copy of it in the order of ranks, and holds up to 1e9 gathered weights.
    """
    p, n = parameters, ranks
    bucket = min(p, 5e8)
    return {
        "weights": BF16 * p / (n if stage == 3 else 1),
        "gradients": {1: (BF16 + FP32) * p, 2: FP32 * p / n, 3: FP32 * p / n}[stage],
        "optimizer": 3 * FP32 * p / n,
        "buffers": {1: 0.0, 2: (2 * BF16 + FP32) * bucket, 3: 2 * FP32 * bucket + BF16 * min(p, 1e9)}[stage],
    }


def activation_bytes(family: str, tokens: int) -> dict[Recomputation, int]:
    """Bytes that forward and backward of a micro-batch hold, by level of `train.memory`: the trainer's own estimate,
    with which `memory: auto` decides, from a probe of the real network with weights that were never written.
    """
    import torch

    from orpo_ray.modeling.memory import activation_bytes as estimate

    with torch.device("meta"):
        policy = build(family).to(torch.bfloat16)
    return estimate(policy.to_empty(device="cpu"), tokens)
