"""What a process may take of the memory of a GPU that others stand on."""

from __future__ import annotations

import torch

_UNTOUCHED = 64 * 2**20
"""Bytes of a share that are not taken at once: torch rounds what it takes up."""


def limit_memory(share: float) -> None:
    """Have torch take no more than `share` of the current GPU's memory, beside the few hundred MB of CUDA itself. What
    does not fit is then `torch.OutOfMemoryError` here, and not in a process beside this one."""
    torch.cuda.set_per_process_memory_fraction(share)


def take_memory(share: float) -> None:
    """`limit_memory`, and take it all now, for torch to hand out here: an engine that starts on this GPU measures what
    is free there, and counts as its own what others take meanwhile."""
    limit_memory(share)
    total = torch.cuda.mem_get_info()[1]
    taken = torch.empty(max(0, int(share * total) - _UNTOUCHED), dtype=torch.uint8, device="cuda")
    del taken  # which torch keeps
