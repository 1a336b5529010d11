"""The stage `deterministic`: under `train.deterministic`, does a GPU give the same bits twice, and what does it cost?

In a process of its own: cuBLAS reads the size of its workspace when it starts, and all other rates are to be those of
its default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import torch

from orpo_ray.beside import beside
from orpo_ray.doctor.gpu import parity, pieces
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.device import Cpu, Cuda
from orpo_ray.doctor.gpu.lines import plain
from orpo_ray.doctor.gpu.sizes import REAL, TOY
from orpo_ray.training.determinism import ENVIRONMENT, deterministic
from orpo_ray.visible import say

_LONGEST = 240.0
"""Seconds, of a CPU that others use too; a GPU takes a tenth."""
_TOY = "--toy"
_LOOK = 0.5  # seconds between two looks for the process that has begun this one


def stages(check: Check) -> Iterator[Stage]:
    yield Stage("deterministic", 40, {}, _in_a_process)


def _in_a_process(check: Check) -> Iterator[Fields]:
    command = [sys.executable, "-m", __name__, str(os.getpid()), *([_TOY] if check.sizes is TOY else [])]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=_LONGEST, check=False
    )
    yield from map(json.loads, done.stdout.splitlines())
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])


def _found(check: Check) -> Iterator[Fields]:
    for family, config in check.sizes.families.items():
        comparison = parity.Comparison(check, config)
        for dtype in (torch.float32, torch.bfloat16):
            same = parity.twice(comparison, dtype)
            name = str(dtype).removeprefix("torch.")
            yield {**parity.about(family, config), "dtype": name, **same, "ok": all(same.values())}
    for model in check.sizes.models:
        for fields in pieces.attention(check, model):
            yield {**pieces.about(model), **fields}


def end_with(parent: int, over: threading.Event) -> None:
    """End this process when that one is gone, whose time limit ends nothing but itself."""
    while not over.wait(_LOOK):
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    toy = _TOY in sys.argv
    with beside(partial(end_with, int(sys.argv[1]))), Cpu() if toy else Cuda() as device, deterministic(True):
        for fields in _found(Check(device, TOY if toy else REAL)):
            say(json.dumps(plain(fields)))


if __name__ == "__main__":
    main()
