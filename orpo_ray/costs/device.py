"""How long a device takes over what `step` counts: training, forwards, and writing token by token.

Of GPUs by the figures of `cluster`, none of them measured here; of CPUs by the terms of docs/scaling.md's fit, with
rates measured on this machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from orpo_ray.costs.cluster import Cluster, bytes_sent
from orpo_ray.costs.step import BF16, FP32, OPTIMIZER_BYTES, Load, Network

_OF_FORWARD = 1 / 3
"""Of a forward's and backward's operations, those of a forward."""
OPERATORS_A_LAYER = 74
"""Of forward, backward and update, for each micro-batch: 5,316 of OPT-1.3B's 24 layers in 3 micro-batches, counted
(docs/scaling.md, one GPU)."""
LAUNCH = 8e-6
"""ASSUMED: seconds of the host for an operator; nothing on a GPU is shorter than all of its operators."""
_DECODED_AT_ONCE = 256
"""Responses that vLLM writes at once on a GPU at most, its default."""
_DECODING = 4e-3
"""ASSUMED: seconds of vLLM for a token of all responses beside what reading the weights takes."""

# Of docs/scaling.md's fit, float32 on CPUs.
_PRODUCTS, _LOGITS, _UPDATE = 1.06, 1.02, 1.0
_ACTIVATIONS = 330.0
"""The fit's 180 was of long texts of one length. Those of the embedded world take more: a step of toy-base, of 925
tokens, 147 ms on a core of 139 GFLOP/s beside little other work (the first 20 of metrics.jsonl, one worker)."""
_LAYER = 4.3e-3
"""Seconds of a layer in a micro-batch, forward and backward."""
_DECODED_ON_CPUS = 32
"""Responses that are written at once on a CPU."""
_DECODED_LAYER = 1.5e-4
"""Seconds of a layer for a token of those that are written at once, beside its products."""


class Shape(NamedTuple):
    """How a step is computed."""

    ranks: int = 1
    micro_batches: int = 1
    """Of each rank."""
    zero_stage: int = 0
    threads: float = 1
    """Of each rank, on CPUs."""

    def flops(self, net: Network, load: Load) -> float:
        """Of a rank, forward and backward, where `load` is that of all ranks and cut evenly."""
        return self.micro_batches * load.times(1 / self.ranks / self.micro_batches).flops(net)


class Device(Protocol):
    """All seconds are of the ranks together: what they take when they work at once."""

    @property
    def name(self) -> str: ...

    def train(self, net: Network, load: Load, trained: int, shape: Shape) -> float:
        """Seconds of forward, backward and update of a step that asks `load` of all ranks, where `trained` parameters
        are updated."""

    def forward(self, net: Network, load: Load, shape: Shape) -> float:
        """Seconds of a forward."""

    def write(
        self, net: Network, responses: float, tokens: float, longest: float, prompt: float, shape: Shape
    ) -> float:
        """Seconds of so many responses of `tokens` each in the mean and `longest` at the most, to prompts of `prompt`
        tokens."""


@dataclass(frozen=True)
class Gpus:
    """Of a published kind, by assumed utilisation."""

    cluster: Cluster = field(default_factory=Cluster)
    name: str = "H100 SXM"

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.cluster.peak * self.cluster.utilisation

    def train(self, net: Network, load: Load, trained: int, shape: Shape) -> float:
        """Communication beside nothing: the cautious end of docs/scaling.md's range."""
        computing = shape.flops(net, load) / self.rate
        launching = shape.micro_batches * net.layers * OPERATORS_A_LAYER * LAUNCH
        update = OPTIMIZER_BYTES * trained / shape.ranks / self.cluster.memory_bandwidth
        return max(computing, launching) + self._sent(trained, shape) + update

    def _sent(self, trained: int, shape: Shape) -> float:
        if shape.ranks == 1:
            return 0.0
        sent = bytes_sent(max(1, shape.zero_stage), trained, shape.micro_batches, shape.ranks)
        return sum(sent) / self.cluster.rate(shape.ranks)

    def forward(self, net: Network, load: Load, shape: Shape) -> float:
        launching = shape.micro_batches * net.layers * OPERATORS_A_LAYER * LAUNCH
        return _OF_FORWARD * max(shape.flops(net, load) / self.rate, launching)

    def write(
        self, net: Network, responses: float, tokens: float, longest: float, prompt: float, shape: Shape
    ) -> float:
        own = responses / shape.ranks  # of each engine
        steps = max(longest, own * tokens / _DECODED_AT_ONCE)
        reading = BF16 * net.parameters / self.cluster.memory_bandwidth
        computed = own * (prompt + tokens) * _a_token(net) / self.rate
        return steps * (reading + _DECODING) + computed


@dataclass(frozen=True)
class Cores:
    """One thread's rates."""

    rate: float
    """FLOP/s of matrix products."""
    bandwidth: float
    """Bytes a second of memory."""
    name: str = "core"

    @classmethod
    def measured(cls, seconds: float = 1.0) -> Cores:
        """Of this machine as it is now, with whatever else runs on it."""
        import torch

        from orpo_ray.modeling.flops import measured_peak

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            rate = measured_peak(torch.device("cpu"), torch.float32, seconds / 2)
            return cls(rate, _copied(seconds / 2))
        finally:
            torch.set_num_threads(threads)

    def train(self, net: Network, load: Load, trained: int, shape: Shape) -> float:
        update = _UPDATE * OPTIMIZER_BYTES * trained / shape.ranks / self.bandwidth
        return self._computed(net, load, shape) + update

    def forward(self, net: Network, load: Load, shape: Shape) -> float:
        return _OF_FORWARD * self._computed(net, load, shape)

    def _computed(self, net: Network, load: Load, shape: Shape) -> float:
        products = _PRODUCTS * shape.flops(net, load) / (self.rate * shape.threads)
        activations = _ACTIVATIONS * FP32 * load.tokens * net.layers * net.width / self.bandwidth
        predicted = FP32 * load.predictions * net.vocabulary if net.per_prediction else 0.0
        logits = _LOGITS * predicted / self.bandwidth
        return products + (activations + logits) / shape.ranks + _LAYER * net.layers * shape.micro_batches

    def write(
        self, net: Network, responses: float, tokens: float, longest: float, prompt: float, shape: Shape
    ) -> float:
        own = responses / shape.ranks
        steps = longest * math.ceil(own / _DECODED_ON_CPUS)
        computed = own * (prompt + tokens) * _a_token(net) / (self.rate * shape.threads)
        return steps * _DECODED_LAYER * net.layers + _PRODUCTS * computed


def _a_token(net: Network) -> float:
    """Operations of a forward that predicts behind each token."""
    return _OF_FORWARD * (net.per_token + net.per_prediction)


def _copied(seconds: float) -> float:
    """Bytes a second, read and written, of the fastest copy of 64 MiB."""
    import torch

    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best
