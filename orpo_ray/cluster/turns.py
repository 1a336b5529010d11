"""Processes that take turns on one GPU."""

from __future__ import annotations

import torch


def let_go(device: torch.device) -> None:
    """Give the device what this process has freed there and its allocator has kept, before another one's turn."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
