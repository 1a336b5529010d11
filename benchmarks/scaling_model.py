"""The cost model of a training step: what a network and a global step cost, in the units a machine is sold by.

See docs/scaling.md for the formula. Parameters and floating-point operations are the trainer's own counts, of the
network built without memory; what DeepSpeed sends and holds comes from `scaling_fit.traffic`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orpo_ray.data.schedule import deal

BF16 = 2  # bytes
GIB = 2**30


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
            parameters=sum(p.numel() for p in policy.parameters()),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            per_token=flops.per_token,
            per_prediction=flops.per_prediction,
            per_visible_pair=flops.per_visible_pair,
        )


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


FAMILIES = ("OPT-1.3B", "Mistral-7B")


def network(family: str) -> Network:
    """The real network, built on torch's meta device."""
    import torch

    with torch.device("meta"):
        return Network.of(build(family))


class Load(NamedTuple):
    """What a micro-batch, or several, asks of one rank."""

    tokens: float
    predictions: float
    visible: float
    """Pairs of a query and a key that it sees."""

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> Load:
        """Of the pairs with these `lengths (pairs, 3)`, prompts scored too (ORPO as the paper has it)."""
        if not len(lengths):
            return cls(0.0, 0.0, 0.0)
        prompt, responses = lengths[:, 0], lengths[:, 1:]
        own = (lengths * (lengths + 1) // 2).sum()
        across = (prompt[:, None] * responses).sum()
        return cls(float(lengths.sum()), float(lengths.sum() - len(lengths)), float(own + across))

    def flops(self, net: Network, checkpointing: bool = False) -> float:
        """Operations of forward and backward; gradient checkpointing runs the trunk's forward twice."""
        trunk = net.per_token * self.tokens + net.per_visible_pair * self.visible
        return trunk * (4 / 3 if checkpointing else 1) + net.per_prediction * self.predictions


def steps_of(
    lengths: npt.NDArray[np.int64], pairs: int, ranks: int, budget: int, samples: int
) -> list[list[list[Load]]]:
    """`samples` global steps of `pairs` pairs drawn from `lengths`, as the trainer deals them: `[step][cut][rank]`."""
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(samples):
        drawn = lengths[rng.integers(0, len(lengths), pairs)]
        dealt = deal(drawn.sum(axis=1), ranks, budget)
        steps.append([[Load.of(drawn[cut]) for cut in cuts] for cuts in zip(*dealt, strict=True)])
    return steps


class Sent(NamedTuple):
    """What a rank of many sends to its neighbour in a ring (bytes a parameter), and how many collectives that takes."""

    reduced: float
    """Bytes a parameter that are all-reduced: each crosses twice."""
    moved: float
    """Bytes a parameter gathered or reduce-scattered: each crosses once."""
    all_reduces: float
    others: float

    def plus(self, other: Sent, times: float) -> Sent:
        return Sent(*(a + b * times for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Node:
    """A node of eight GPUs and its network, by published figures; fractions of them are assumptions."""

    peak: float = 989e12
    """FLOP/s in bfloat16, dense (H100 SXM data sheet)."""
    memory_bandwidth: float = 3.35e12
    nvlink: float = 450e9
    """Bytes a second and GPU, in each direction."""
    network: float = 50e9
    """Bytes a second and GPU: 400 Gb/s. A ring enters a node by all eight ports together."""
    gpus: int = 8
    nvlink_hop: float = 3.4e-6
    network_hop: float = 14.0e-6
    """Seconds; NCCL's own tuning model (src/graph/tuning.cc), ring, protocol Simple."""
    utilisation: float = 0.4
    """ASSUMED: fraction of the peak that the trunk and the head reach, recomputation counted as work."""
    link_efficiency: float = 0.8
    """ASSUMED: fraction of the links' published rate that NCCL reaches with large messages."""

    def communication(self, sent: Sent, parameters: int, ranks: int) -> float:
        """Seconds of collectives over `ranks` GPUs."""
        if ranks == 1:
            return 0.0
        nodes = math.ceil(ranks / self.gpus)
        rate = self.nvlink if nodes == 1 else min(self.nvlink, self.gpus * self.network)
        crossing = (2 * sent.reduced + sent.moved) * parameters * (ranks - 1) / ranks
        hops = (ranks - nodes) * self.nvlink_hop + (nodes > 1) * nodes * self.network_hop  # once round the ring
        inside = min(ranks, self.gpus) - 1
        tree = 2 * (inside * self.nvlink_hop + math.log2(nodes) * self.network_hop)
        return crossing / (rate * self.link_efficiency) + sent.others * hops + sent.all_reduces * tree


OPTIMIZER_BYTES = 30
"""A parameter's share of memory traffic in AdamW: weight, m and v read and written, gradient read in float32, bfloat16
weight written."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the busiest rank."""

    compute: float
    communication: float
    optimizer: float
    input: float
    overlapped: bool
    """Whether communication runs beside compute (ZeRO-3) or in turn with it (ZeRO-1 and 2 as DeepSpeed has them)."""

    @property
    def total(self) -> float:
        device = max(self.compute, self.communication) if self.overlapped else self.compute + self.communication
        return max(device + self.optimizer, self.input)

    @property
    def limit(self) -> str:
        costs = {"compute": self.compute, "communication": self.communication, "input": self.input}
        return max(costs, key=lambda name: costs[name])


def step_time(
    net: Network, steps: list[list[list[Load]]], sent: tuple[Sent, Sent], node: Node, input_seconds: float, stage: int
) -> StepTime:
    """Mean over `steps`. `sent`: of a step whatever its micro-batches, and of each micro-batch.

    Ranks meet at every micro-batch's collectives, so each micro-batch lasts as long as its longest share.
    """
    ranks = len(steps[0][0])
    compute = [sum(max(load.flops(net, True) for load in cut) for cut in step) for step in steps]
    of_step, of_micro_batch = sent
    micro_batches = float(np.mean([len(step) for step in steps]))
    owned = net.parameters / ranks if stage else net.parameters
    return StepTime(
        compute=float(np.mean(compute)) / (node.peak * node.utilisation),
        communication=node.communication(of_step.plus(of_micro_batch, micro_batches), net.parameters, ranks),
        optimizer=owned * OPTIMIZER_BYTES / node.memory_bandwidth,
        input=input_seconds,
        overlapped=stage == 3,
    )


def memory(
    net: Network, stage: int, ranks: int, tokens: int, saved: float, checkpointing: bool, chunk: int
) -> dict[str, float]:
    """GiB on each GPU while backward runs; `saved`: bytes that a layer keeps for backward, a token and unit of width.

    Counts of `scaling_fit.held` beside DeepSpeed's buffers at their defaults: a bucket of 5e8 gradients in bfloat16
    and, for ZeRO-3, up to 1e9 gathered weights.
    """
    p, n = net.parameters, ranks
    weights = BF16 * p / (n if stage == 3 else 1)
    gradients = {0: 2 * p, 1: 6 * p, 2: 4 * p / n, 3: 4 * p / n}[stage]
    buffers = {0: 0.0, 1: 0.0, 2: 1e9, 3: 1e9 + BF16 * min(p, 1e9)}[stage]
    layer = saved * net.width * tokens
    kept = net.layers * (BF16 * net.width * tokens if checkpointing else layer)
    logits = min(BF16 * tokens * net.vocabulary, chunk)
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 12 * p / (n if stage else 1),
        "buffers": buffers,
        "activations": kept + layer + logits,
    }
    return {name: size / GIB for name, size in parts.items()}
