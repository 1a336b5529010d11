"""The same bits twice on a device: `train.deterministic` (docs/reliability.md says what holds without it).

On a CPU every operator that training takes gives the same bits already. On a device it need not: FlashAttention's
backward, and others that add up what several threads have, add in the order that these come in; cuBLAS divides its
workspace among streams; and NCCL may have a switch add up what ranks send.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from orpo_ray.errors import UserError

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
"""For a worker on a device that is yet to start: cuBLAS reads it as it starts, NCCL as ranks first meet. A ring adds in
the order of its ranks, which the hardware's layout decides, in software, and by the same algorithm whatever the
size."""

_NO_KERNEL = " does not have a deterministic implementation"  # what PyTorch's error says behind an operator's name


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Have this process take operators' deterministic kernels alone in the body, where that is `asked`.

    Raises `UserError`, naming the operator, where the body comes to one that has none.
    """
    if not asked:
        yield
        return
    torch.use_deterministic_algorithms(True)  # `warn_only` would leave FlashAttention's backward as it is
    # Else every new tensor is filled with NaN: it finds reads of what was never written, and is paid for in each step.
    memory: Any = torch.utils.deterministic
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = str(error).partition(_NO_KERNEL)
        if not found:
            raise
        raise UserError(
            f"train.deterministic: this run needs {operator.splitlines()[-1]}, of which PyTorch has no deterministic "
            "kernel here; leave train.deterministic out"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)
        memory.fill_uninitialized_memory = filled
