"""Nodes of GPUs by published figures, and what DeepSpeed sends between them in a step; sources: docs/scaling.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orpo_ray.costs.step import BF16, FP32


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
