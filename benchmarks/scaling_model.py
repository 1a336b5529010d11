"""The cost model of a training step; docs/scaling.md tells it in formulas.

Parameters and floating-point operations are the trainer's own counts (`modeling/flops.py`), of the network built
without memory. What DeepSpeed sends and holds is written here and counted in `scaling_traffic.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orpo_ray.data.schedule import deal
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.memory import Recomputation

Lengths = npt.NDArray[np.int64]
"""(pairs, 3): tokens of prompt, chosen and rejected."""

FAMILIES = ("OPT-1.3B", "Mistral-7B")
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
        from orpo_ray.modeling.flops import StepFlops

        flops, config = StepFlops.of(policy), policy.model.config
        return cls(
            sum(p.numel() for p in policy.parameters()), config.num_hidden_layers, config.hidden_size,
            config.vocab_size, flops.per_token, flops.per_prediction, flops.per_visible_pair,
        )  # fmt: skip


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


class Load(NamedTuple):
    """What a micro-batch asks of one rank."""

    tokens: float
    predictions: float
    visible: float
    """Pairs of a query and a key that it sees."""

    @classmethod
    def of(cls, lengths: Lengths) -> Load:
        """Of these pairs, prompts scored too (ORPO as the paper has it)."""
        prompt, responses = lengths[:, 0], lengths[:, 1:]
        own = (lengths * (lengths + 1) // 2).sum()
        across = (prompt[:, None] * responses).sum()
        return cls(float(lengths.sum()), float(lengths.sum() - len(lengths)), float(own + across))

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
    from orpo_ray.modeling.memory import _SMALL_CHUNK

    return _SMALL_CHUNK if recomputation == "full" else LogprobHead.chunk_bytes


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


def bytes_sent(
    stage: int, parameters: int, micro_batches: float, ranks: int, element: int = BF16
) -> tuple[float, float]:
    """What a rank sends to its neighbour in a ring in a step: (beside computation, in turn with it), as DeepSpeed 0.19
    has it.

    A gather or a reduce-scatter sends (ranks - 1) / ranks of the parameters' bytes, an all-reduce twice that. ZeRO-1
    all-reduces gradients after a step's last backward. ZeRO-2 all-reduces them in every micro-batch's backward
    (of which a rank keeps its part). 1 and 2 gather the weights after the update. ZeRO-3 gathers weights in every
    forward and again in backward, and reduce-scatters gradients. Gradients travel in float32, weights as they are.
    """
    once = parameters * (ranks - 1) / ranks
    weights, gradients = element * once, FP32 * once
    beside = {1: 0.0, 2: 2 * gradients, 3: 2 * weights + gradients}[stage]
    in_turn = {1: 2 * gradients + weights, 2: weights, 3: 0.0}[stage]
    return micro_batches * beside, in_turn


class Collectives(NamedTuple):
    """How many collectives a step takes whatever its micro-batches (small ones: biases and norms, one by one), and how
    many each micro-batch.
    """

    of_step: float
    of_micro_batch: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs by published figures; what is ASSUMED is a fraction of them."""

    peak: float = 989e12
    """FLOP/s in bfloat16, dense (NVIDIA H100 SXM data sheet)."""
    memory_bandwidth: float = 3.35e12
    """Bytes a second (the same)."""
    nvlink: float = 450e9
    """Bytes a second and GPU in each direction (the same)."""
    network: float = 50e9
    """Bytes a second and GPU: a port of 400 Gb/s each, as in a DGX H100. Rings enter a node by all eight together."""
    gpus_a_node: int = 8
    nvlink_hop: float = 3.4e-6
    network_hop: float = 14.0e-6
    nvlink_small_hop: float = 0.6e-6
    network_small_hop: float = 2.7e-6
    """Seconds; NCCL's own tuning model (src/graph/tuning.cc): ring, protocol Simple, and LL for small messages."""
    utilisation: float = 0.35
    """ASSUMED: of the peak, in all that is computed. Torchtitan reports 33 % and 39 % (torch.compile) for Llama 3.1 8B
    under FSDP on 8 and 128 H100s limited to 500 W (benchmarks/llama3_h100_202412_torchtitan.md)."""
    link_efficiency: float = 0.8
    """ASSUMED: of the links' published rate, with large messages."""

    def rate(self, ranks: int) -> float:
        """Bytes a second that a rank sends round a ring: NVLink inside a node, else the slower of it and the ports."""
        inside = ranks <= self.gpus_a_node
        return self.link_efficiency * (self.nvlink if inside else min(self.nvlink, self.gpus_a_node * self.network))

    def latency(self, ranks: int, small: bool = False) -> float:
        """Seconds of a collective beside what its bytes take: once round the ring."""
        nodes = math.ceil(ranks / self.gpus_a_node)
        inside, between = (
            (self.nvlink_small_hop, self.network_small_hop) if small else (self.nvlink_hop, self.network_hop)
        )
        return (ranks - nodes) * inside + (nodes * between if nodes > 1 else 0.0)


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
