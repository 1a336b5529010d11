"""A GPU, or the CPU that a rehearsal takes for one: all that differs between them is here."""

from __future__ import annotations

import gc
import platform
import shutil
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch

from orpo_ray.doctor.gpu.counted import CountedTensors

GIB = 2**30
_LONGEST = 3.0
"""Seconds after which a call is timed no more often."""


class Device(ABC):
    """To be entered before anything is computed on it."""

    def __init__(self, place: str) -> None:
        self.place = torch.device(place)

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *raised: Any) -> None: ...

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What it is: at least its `name`."""

    @abstractmethod
    def wait(self) -> None:
        """Until all that was asked of it is computed."""

    @abstractmethod
    def held(self) -> int:
        """Bytes of tensors."""

    @abstractmethod
    def start_peak(self) -> None:
        """`peak` counts from here."""

    @abstractmethod
    def peak(self) -> int:
        """The most bytes that were `held`."""

    @property
    @abstractmethod
    def profiled(self) -> list[torch.profiler.ProfilerActivity]:
        """What a profile records."""

    @abstractmethod
    def microseconds(self, event: Any) -> float:
        """Of an operator of a profile, without those that it calls."""

    def free(self) -> None:
        """Let go of what nothing refers to, for others too."""
        gc.collect()

    def milliseconds(self, call: Callable[[], object], *, times: int = 5, warm: int = 2) -> float:
        """The median of `times` calls behind `warm` others; of fewer where they take long."""
        for _ in range(warm):
            call()
        found: list[float] = []
        while len(found) < times and sum(found) < 1e3 * _LONGEST:
            found.append(self._once(call))
        return statistics.median(found)

    def _once(self, call: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return 1e3 * (time.perf_counter() - start)


class Cuda(Device):
    def __init__(self) -> None:
        super().__init__("cuda:0")
        torch.cuda.set_device(self.place)

    def __exit__(self, *raised: Any) -> None:
        pass

    def about(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.place)
        free, whole = torch.cuda.mem_get_info(self.place)
        return {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(self.place)),
            "processors": properties.multi_processor_count,
            "memory_gib": whole / GIB,
            "free_gib": free / GIB,
            **_asked_of_the_driver(),
        }

    def wait(self) -> None:
        torch.cuda.synchronize(self.place)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.place)

    def start_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.place)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.place)

    @property
    def profiled(self) -> list[torch.profiler.ProfilerActivity]:
        return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]

    def microseconds(self, event: Any) -> float:
        return float(event.self_device_time_total)

    def free(self) -> None:
        super().free()
        torch.cuda.empty_cache()
        self.start_peak()


class Cpu(Device):
    def __init__(self) -> None:
        super().__init__("cpu")
        self._tensors = CountedTensors()

    def __enter__(self) -> Self:
        self._tensors.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        self._tensors.__exit__(*raised)  # type: ignore[no-untyped-call]

    def about(self) -> dict[str, Any]:
        return {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}

    def wait(self) -> None:
        pass

    def held(self) -> int:
        return self._tensors.held

    def start_peak(self) -> None:
        self._tensors.peak = self._tensors.held

    def peak(self) -> int:
        return self._tensors.peak

    @property
    def profiled(self) -> list[torch.profiler.ProfilerActivity]:
        return [torch.profiler.ProfilerActivity.CPU]

    def microseconds(self, event: Any) -> float:
        return float(event.self_cpu_time_total)


def _asked_of_the_driver() -> dict[str, str]:
    """What torch does not know and speed depends on; nothing where `nvidia-smi` does not say."""
    names = ("driver_version", "power.limit", "clocks.max.sm")
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    said = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(names, said, strict=True)) if done.returncode == 0 and len(said) == len(names) else {}
