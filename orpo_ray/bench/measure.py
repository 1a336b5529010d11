"""Memory of a step in this process: how high it rose above what is always in place."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

_SELF = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak resident set becomes the present one


class Peak(NamedTuple):
    """Bytes; None where this machine does not tell."""

    above_in_place: int | None
    """The peak of a step above the loaded model and its optimizer states."""
    resident: int | None
    """The peak of a step in all."""


class Memory(Protocol):
    def settle(self) -> None:
        """What is held now is in place: the model and its optimizer states, without gradients."""

    def start(self) -> None:
        """A step begins."""

    def peak(self) -> Peak:
        """Since `start`."""


def memory_of(device: torch.device) -> Memory:
    return CudaMemory(device) if device.type == "cuda" else ResidentMemory()


class ResidentMemory:
    """Of a CPU process on Linux, by its resident set."""

    def __init__(self) -> None:
        self._in_place: int | None = None

    def settle(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps of freed blocks is not in place
        self._in_place = _status("VmRSS")

    def start(self) -> None:
        if (_SELF / "clear_refs").exists():
            (_SELF / "clear_refs").write_text(_RESET_PEAK)

    def peak(self) -> Peak:
        highest = _status("VmHWM")
        above = None if highest is None or self._in_place is None else highest - self._in_place
        return Peak(above, highest)


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes."""
    if not (_SELF / "status").exists():
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", (_SELF / "status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class CudaMemory:
    """Of a CUDA device, by PyTorch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in_place: int | None = None

    def settle(self) -> None:
        gc.collect()
        self._in_place = torch.cuda.memory_allocated(self._device)

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        highest = torch.cuda.max_memory_allocated(self._device)
        return Peak(None if self._in_place is None else highest - self._in_place, highest)


def synchroniser(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
