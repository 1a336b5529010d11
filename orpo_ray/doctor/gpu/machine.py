"""The stages `machine`, `peak`, `bandwidth` and `launch`: versions, and the rates that all others are held against."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
from collections.abc import Iterator

import torch

from orpo_ray.doctor.gpu.check import Check, Fields

_PACKAGES = ("torch", "transformers", "numpy", "triton", "peft", "deepspeed", "ray", "vllm", "flash-attn")
_DTYPES = {torch.bfloat16: 20, torch.float32: 5}
"""How often a product is taken in each."""
_OPERATORS = 500


def machine(check: Check) -> Iterator[Fields]:
    from torch.nn.attention import varlen  # from 2.11 on; a stage is to fail without it, not the whole check

    options = inspect.signature(varlen.varlen_attn).parameters
    yield {
        "device": check.device.about(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "varlen_enable_gqa": "enable_gqa" in options,
        "float32_by_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def peak(check: Check) -> Iterator[Fields]:
    """Of matrix products. The first loads the kernel and is no measure of it."""
    device, size = check.device, check.sizes.product
    for dtype, times in _DTYPES.items():
        a, b = (torch.randn(size, size, device=device.place, dtype=dtype) for _ in range(2))
        first = device.milliseconds(lambda a=a, b=b: a @ b, times=1, warm=0)  # type: ignore[misc]
        then = device.milliseconds(lambda a=a, b=b: a @ b, times=times)  # type: ignore[misc]
        name = str(dtype).removeprefix("torch.")
        check.peaks[name] = 2 * size**3 / (then / 1e3)
        yield {"dtype": name, "size": size, "first_ms": first, "ms": then, "tflops": check.peaks[name] / 1e12}
        del a, b


def bandwidth(check: Check) -> Iterator[Fields]:
    """Of the device's memory: bytes read and written by a copy."""
    size = check.sizes.copied
    source = torch.zeros(size, dtype=torch.uint8, device=check.device.place)
    target = torch.empty_like(source)
    milliseconds = check.device.milliseconds(lambda: target.copy_(source), times=10)
    yield {"bytes": 2 * size, "ms": milliseconds, "gb_per_s": 2 * size / milliseconds / 1e6}


def launch(check: Check) -> Iterator[Fields]:
    """What an operator costs the host, as small as it may be: a step is no shorter than all of its own."""
    small = torch.zeros(8, device=check.device.place)

    def operators() -> None:
        for _ in range(_OPERATORS):
            small.add_(1.0)

    milliseconds = check.device.milliseconds(operators)
    yield {"operators": _OPERATORS, "us": 1e3 * milliseconds / _OPERATORS}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
