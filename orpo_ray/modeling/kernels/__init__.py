"""Kernels of our own, in Triton: where PyTorch's operators would go over the same memory several times.

Triton comes with PyTorch's CUDA builds, and needs a C compiler for what it runs. Where either is missing the plain path
is taken, which gives the same numbers up to rounding.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from orpo_ray.telemetry.logs import log

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton, asked by its own variable, runs kernels on the CPU, line by line."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Logprobs(Protocol):
    """See `logprob.logprobs`."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        residuals: Tensor | None,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> Tensor: ...


def logprobs_for(logits: Tensor) -> Logprobs | None:
    """The kernel that takes `logits`; None: it has to be PyTorch's operators."""
    device = logits.device
    if logits.dtype not in _TYPES or not (device.type == "cuda" or (INTERPRETED and device.type == "cpu")):
        return None
    return _logprobs(device)


@cache
def _logprobs(device: torch.device) -> Logprobs | None:
    """Tried once: what is missing is found where a kernel is first compiled."""
    try:
        from orpo_ray.modeling.kernels.logprob import logprobs

        logprobs(torch.zeros(1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device), None)
    except Exception as error:  # of any kind: a compiler, a driver
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        log("Triton does not run: log-probs move five times the memory", logging.WARNING, device=str(device), why=said)
        return None
    return logprobs
