"""The round of the stages, most informative first, until all are done or the time is up."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import torch

from orpo_ray import __version__
from orpo_ray.doctor.gpu import machine, parity, pieces, repeated, steps
from orpo_ray.doctor.gpu.check import Check, Stage
from orpo_ray.doctor.gpu.device import Cpu, Cuda
from orpo_ray.doctor.gpu.lines import FORMAT, Lines
from orpo_ray.doctor.gpu.sizes import REAL, TOY
from orpo_ray.doctor.gpu.summary import fault, summary
from orpo_ray.errors import UserError
from orpo_ray.visible import say

_SAID = 400
"""Characters of another library's reason."""


def check_gpu(seconds: float, out: Path | None, *, toy: bool, start: float) -> int:
    """Print and write all lines, then a summary; returns 1 where something is at fault, else 0.

    `seconds` count from `start` (of `time.perf_counter`); when they are up, the process ends, whatever it is in.
    Raises `UserError` where there is no GPU and it is not to be a `toy`, or where `out` is there.
    """
    if not toy and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no GPU here; --toy does the same on the CPU, at toy size")
    path = out or Path(time.strftime("gpu-check-%Y%m%d-%H%M%S.jsonl"))
    try:
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error.strerror}") from error
    with file:
        lines = Lines(start, file, sys.stdout)
        lines.say("start", format=FORMAT, toy=toy, limit_s=seconds, orpo_ray=__version__)
        with TimeLimit(lines, seconds, path), Cpu() if toy else Cuda() as device:
            check = Check(device, TOY if toy else REAL)
            for stage in _stages(check):
                take(stage, check, lines, seconds)
        return _end(lines, path, complete=True)


def _stages(check: Check) -> Iterator[Stage]:
    first = [
        Stage("machine", 2, {}, machine.machine), Stage("peak", 3, {}, machine.peak),
        Stage("bandwidth", 1, {}, machine.bandwidth), Stage("launch", 1, {}, machine.launch),
    ]  # fmt: skip
    rest = parity.stages, pieces.stages, steps.stages, repeated.stages, steps.profiles
    return chain(first, *(stages(check) for stages in rest))


def take(stage: Stage, check: Check, lines: Lines, seconds: float) -> None:
    """One stage. What it raises is a line of it; the next finds the device's memory free."""
    left = seconds - lines.seconds
    about = {"stage": stage.name, **stage.about}
    if left < stage.needs:
        lines.say(**about, skipped=f"{max(0.0, left):.0f} s are left, and it needs {stage.needs:g}")
        return
    try:
        check.device.free()  # here, since it too fails where a kernel has broken the device
        with closing(stage.run(check)) as found:  # type: ignore[type-var]
            for fields in found:
                lines.say(**{**about, **fields})
    except torch.OutOfMemoryError:
        lines.say(**about, out_of_memory=True)
    except Exception as error:  # of any kind: one stage is not to end the others
        lines.say(**about, error=f"{type(error).__name__}: {' '.join(str(error).split())[:_SAID]}")


class TimeLimit:
    """Ends the process when time is up, also in a kernel that never returns."""

    def __init__(self, lines: Lines, seconds: float, path: Path) -> None:
        def stop() -> None:
            try:
                _end(lines, path, complete=False)
            finally:
                os._exit(1)

        self._timer = threading.Timer(max(0.0, seconds - lines.seconds), stop)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()
        self._timer.join()  # if it has begun to end the process, let it


def _end(lines: Lines, path: Path, *, complete: bool) -> int:
    at_fault = fault(lines.said)
    lines.say("end", complete=complete and not any("skipped" in line for line in lines.said), fault=at_fault)
    for text in ("", *summary(lines.said).splitlines(), f"The lines: {path}"):
        say(text)
    return int(at_fault)
