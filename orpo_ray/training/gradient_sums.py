"""Gradients added up over ranks a bucket at a time, while backward goes on with those of other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TOGETHER = 1 << 24  # elements that one all-reduce sums: 64 MB, for each has a price of its own, whatever its size


class GradientSums:
    """Buckets of weights whose gradients are summed together, for each step anew.

    Which weights are in a bucket, and which bucket comes after which, is the same in every step and on every rank,
    whatever comes first: ranks have to meet in the same order, and a sum over three ranks or more depends on where in
    a bucket an element is.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """`weights`: float32, in the order that forward uses them in; their `grad` is what is summed."""
        self._buckets: list[list[Tensor]] = []
        elements = 0
        for weight in reversed(weights):  # as backward comes to them
            if not self._buckets or elements >= _TOGETHER:
                self._buckets.append([])
                elements = 0
            self._buckets[-1].append(weight)
            elements += weight.numel()
        self._bucket_of = {weight: number for number, bucket in enumerate(self._buckets) for weight in bucket}
        self._sums: list[Any] = []
        self._left = self._sizes()

    def _sizes(self) -> list[int]:
        return [len(bucket) for bucket in self._buckets]

    def ready(self, weight: Tensor) -> None:
        """To be called when the gradient of `weight` in this step is all there, on this rank."""
        self._left[self._bucket_of[weight]] -= 1
        while len(self._sums) < len(self._buckets) and not self._left[len(self._sums)]:
            self._begin()

    def finish(self) -> None:
        """Every weight has the sum over ranks as its gradient; also one for which nothing was `ready` here."""
        while len(self._sums) < len(self._buckets):
            self._begin()
        for summed in self._sums:
            summed.wait()
        self._sums, self._left = [], self._sizes()

    def _begin(self) -> None:
        """Begin the next bucket's sum. Gradients become views of what is summed."""
        bucket = self._buckets[len(self._sums)]
        flat = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in bucket])
        for weight, part in zip(bucket, torch.split(flat, [weight.numel() for weight in bucket]), strict=True):
            weight.grad = part.view_as(weight)
        self._sums.append(torch.distributed.all_reduce(flat, async_op=True))
