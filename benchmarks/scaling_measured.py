"""What `orpo-ray doctor --gpu` has measured (docs/gpu.md), as the cost model takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scaling_roofline import ACCUMULATION_BYTES, Device

from orpo_ray.costs.cluster import Cluster
from orpo_ray.costs.step import OPTIMIZER_BYTES, Lengths, Load, Network
from orpo_ray.modeling.memory import Recomputation

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """Rates of one device. What a file does not hold (a stage failed, or time ran out) stays assumed."""

    device: str = ""
    """Its name; empty: nothing is measured."""
    peak: float | None = None
    """FLOP/s of bfloat16 products."""
    bandwidth: float | None = None
    """Bytes a second of a copy, read and written."""
    attention: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s of packed attention in bfloat16, forward and backward, by model."""
    steps: Mapping[tuple[str, Recomputation], dict[str, Any]] = field(default_factory=dict)
    """Lines of this package's steps, by model and `train.memory`."""

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Of a file of JSON lines. Raises `ValueError` where it is of a rehearsal, or of another format."""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        start: dict[str, Any] = next((line for line in lines if line["stage"] == "start"), {})
        if start.get("format") != FORMAT:
            raise ValueError(f"{path}: format {start.get('format')}; this reads {FORMAT}")
        if start["toy"]:
            raise ValueError(f"{path}: is of a rehearsal (toy), whose rates mean nothing")
        return cls.of(lines)

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> Measured:
        """Lines without results count as not there."""

        def found(stage: str, key: str, **wanted: Any) -> list[dict[str, Any]]:
            return [
                line for line in lines
                if line["stage"] == stage and line.get(key) and all(line.get(k) == v for k, v in wanted.items())
            ]  # fmt: skip

        peak = found("peak", "tflops", dtype="bfloat16")
        copies = found("bandwidth", "gb_per_s")
        machine = found("machine", "device")
        attention = found("attention", "useful_tflops", way="packed", dtype="bfloat16")
        steps = found("step", "ms", who="orpo_ray")
        return cls(
            machine[0]["device"]["name"] if machine else "",
            peak[0]["tflops"] * 1e12 if peak else None,
            copies[0]["gb_per_s"] * 1e9 if copies else None,
            {line["model"]: line["useful_tflops"] * 1e12 for line in attention},
            {(line["model"], line["memory"]): line for line in steps},
        )

    def roofline(self, family: str) -> Device:
        device = Device()
        return replace(
            device, products=self.peak or device.products, bandwidth=self.bandwidth or device.bandwidth,
            attention=self.attention.get(family, device.attention),
        )  # fmt: skip

    def cluster(self, family: str, level: Recomputation, net: Network, lengths: Lengths) -> tuple[Cluster, str]:
        """Nodes of such devices for steps of `family` at this `level` of recomputation; and the name of the device
        whose utilisation stands there, empty where it is assumed.

        A step's FLOPs, those computed again among them, over its seconds without the update's.
        """
        cluster = replace(Cluster(), memory_bandwidth=self.bandwidth or Cluster().memory_bandwidth)
        line = self.steps.get((family, level))
        if line is None:
            return cluster, ""
        again = Load.of(lengths).flops(net, level) / Load.of(lengths).flops(net)
        updated = net.parameters if line["lora_rank"] is None else 0
        update = updated * (ACCUMULATION_BYTES + OPTIMIZER_BYTES) / cluster.memory_bandwidth
        rate = line["useful_tflop"] * 1e12 * again / (line["ms"] / 1e3 - update)
        return replace(cluster, utilisation=rate / cluster.peak), self.device
