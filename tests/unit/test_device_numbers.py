"""What is measured of a device: the peak that MFU is a share of, and the memory that is free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orpo_ray.modeling import flops
from orpo_ray.training import room


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_the_first_products_are_no_part_of_the_peak(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may take longer than the whole trial, of which nothing would be left then."""
    took: list[float] = []

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        took.append(0.05 if len(took) < slow else 0.001)

    monkeypatch.setattr(flops, "product", product)
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: sum(took)))
    peak = flops.measured_peak(torch.device("cpu"), torch.float32, seconds=0.01)
    assert peak == pytest.approx(2 * 1024**3 / 0.001)


@pytest.mark.parametrize(("kept", "emptied"), [(0, 1), (3 * 10**9, 1)])
def test_what_the_allocator_keeps_is_free(kept: int, emptied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a reference that has gone; what it cannot give back, since a part of it is in use, is there for this
    process."""
    said: list[Any] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("emptied"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: said.append("read") or (50 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 * 10**9 - kept)
    assert room._free(torch.device("cuda:0"), 4) == 50 * 10**9 + kept
    assert said == ["emptied", "read"]
