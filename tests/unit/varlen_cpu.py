"""CPU kernels for the operators that `modeling.varlen` calls, so that its path on CUDA devices runs here as it stands.

Each checks what the CUDA kernel would (`flash_api.cpp`, `attention.cu`, `kernel_forward.h` of torch 2.11 and 2.13), and
computes a segment after another, densely. They stay registered: nothing else on a CPU calls these operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import _varlen_attn, _varlen_attn_backward

from orpo_ray.modeling import attention, varlen

Fault = Literal["", "top left", "window off by one", "keys rolled"]

CALLS: Counter[str] = Counter()
_fault: Fault = ""
_aten = torch.library.Library("aten", "IMPL")


def pretend_cuda(patch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), *half: torch.dtype) -> None:
    """Have the CPU be taken for a CUDA device; `half`: what counts as half precision there, to be computed exactly."""
    patch.setattr(attention, "capability_of", lambda device: capability)
    patch.setattr(varlen, "_HALF", (*varlen._HALF, *half))
    CALLS.clear()


@contextmanager
def faulty(fault: Fault) -> Iterator[None]:
    """The kernels see other keys than they should."""
    global _fault
    _fault = fault
    yield
    _fault = ""


class Segment:
    """The attention of one segment: softmax weights of queries `(queries, heads, width)` over keys."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> None:
        groups = query.shape[1] // key.shape[1]
        self.scale = query.shape[2] ** -0.5 if scale is None else scale
        self.dtype = query.dtype
        query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
        self.query = query.transpose(0, 1)
        self.key, self.value = (x.transpose(0, 1).repeat_interleave(groups, 0) for x in (key, value))
        queries, keys = len(query), len(key)
        last = 0 if _fault == "top left" else keys - queries
        distance = torch.arange(queries)[:, None] + last - torch.arange(keys)
        if _fault == "keys rolled":
            distance = distance.roll(1, 1)
        seen = distance >= 0
        if window is not None:
            seen &= distance < window + (_fault == "window off by one")
        scores = (self.query @ self.key.transpose(1, 2) * self.scale).masked_fill(~seen, -torch.inf)
        self.log_sums = scores.logsumexp(2)
        self.weights = (scores - self.log_sums[..., None]).exp().nan_to_num()

    def dropped(self, rate: float, seed: int) -> Tensor:
        """What the weights are multiplied by."""
        drawn = torch.rand(self.weights.shape, generator=torch.Generator().manual_seed(seed), dtype=self.weights.dtype)
        return (drawn >= rate) / (1 - rate)

    def forward(self, factors: Tensor | float = 1.0) -> Tensor:
        return (self.weights * factors @ self.value).transpose(0, 1).to(self.dtype)

    def backward(self, grad: Tensor, kv_heads: int, factors: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        grad = grad.transpose(0, 1).to(self.query.dtype)
        of_weights = grad @ self.value.transpose(1, 2) * factors
        of_scores = self.weights * (of_weights - (of_weights * self.weights).sum(2, keepdim=True)) * self.scale
        of_key = of_scores.transpose(1, 2) @ self.query
        of_value = (self.weights * factors).transpose(1, 2) @ grad
        of_key, of_value = (x.unflatten(0, (kv_heads, -1)).sum(1).transpose(0, 1) for x in (of_key, of_value))
        return (of_scores @ self.key).transpose(0, 1), of_key, of_value


def _segments(cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *rows: Tensor) -> list[tuple[slice, slice]]:
    """Of each segment its queries and its keys, of all `rows`: query, key, value."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous() and cu_seq_k.is_contiguous() and len(cu_seq_q) == len(cu_seq_k)
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    assert [int(cu_seq_q[-1]), int(cu_seq_k[-1]), int(cu_seq_k[-1])] == [len(row) for row in rows]
    assert all(row.stride(-1) == 1 and row.shape[1] for row in rows)
    starts = zip(cu_seq_q.tolist(), cu_seq_k.tolist(), strict=True)
    return [(slice(a, b), slice(c, d)) for (a, c), (b, d) in pairwise(starts)]


def _window(is_causal: bool, sides: list[int]) -> int | None:
    left, right = sides
    assert right == 0 and is_causal == (left < 0)
    return None if left < 0 else left + 1


def _check_flash(query: Tensor, key: Tensor, value: Tensor) -> None:
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[2] == key.shape[2] == value.shape[2] and query.shape[2] % 8 == 0 and query.shape[2] <= 256
    assert query.shape[1] % key.shape[1] == 0 and key.shape[1] == value.shape[1]


@_varlen_attn.register_kernel("cpu")
def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *later: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    CALLS["flash"] += 1
    _check_flash(query, key, value)
    assert window_size is not None
    window = _window(is_causal, window_size)
    parts = _segments(cu_seq_q, cu_seq_k, max_q, max_k, query, key, value)
    computed = [Segment(query[q], key[k], value[k], scale, window) for q, k in parts]
    log_sums = torch.cat([part.log_sums for part in computed], 1)
    return torch.cat([part.forward() for part in computed]), log_sums, torch.zeros(2, dtype=torch.uint64)


@_varlen_attn_backward.register_kernel("cpu")
def flash_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    CALLS["flash_backward"] += 1
    _check_flash(query, key, value)
    assert grad_out.shape == out.shape == query.shape and lse.shape == query.shape[1::-1] and rng_state.shape == (2,)
    assert window_size is not None
    window = _window(is_causal, window_size)
    grads = [torch.empty_like(x) for x in (query, key, value)]
    for q, k in _segments(cu_seq_q, cu_seq_k, max_q, max_k, query, key, value):
        part = Segment(query[q], key[k], value[k], scale, window)
        for grad, found, place in zip(grads, part.backward(grad_out[q], key.shape[1]), (q, k, k), strict=True):
            grad[place] = found
    return grads[0], grads[1], grads[2]


def _check_efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: int) -> None:
    assert bias is None and mask == 2
    assert query.dtype == key.dtype == value.dtype and len(query) == len(key) == len(value) == 1
    assert query.shape[2] == key.shape[2] == value.shape[2] and query.shape[3] == key.shape[3]
    assert all(x.shape[3] * x.element_size() % 16 == 0 for x in (query, value))


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    CALLS["efficient"] += 1
    _check_efficient(query, key, value, bias, custom_mask_type)
    assert compute_log_sumexp
    parts = _segments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, query[0], key[0], value[0])
    log_sums = torch.zeros(len(parts), query.shape[2], -(-max_seqlen_q // 32) * 32)
    seed = torch.randint(2**31, ())
    attended = []
    for index, (q, k) in enumerate(parts):
        part = Segment(query[0, q], key[0, k], value[0, k], scale, None)
        log_sums[index, :, : part.log_sums.shape[1]] = part.log_sums
        attended.append(part.forward(part.dropped(dropout_p, int(seed) + index)))
    return torch.cat(attended)[None], log_sums, seed, torch.zeros((), dtype=torch.int64), max_seqlen_q, max_seqlen_k


def efficient_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    logsumexp: Tensor,
    dropout_p: float,
    philox_seed: Tensor,
    philox_offset: Tensor,
    custom_mask_type: int,
    bias_requires_grad: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    CALLS["efficient_backward"] += 1
    _check_efficient(query, key, value, bias, custom_mask_type)
    assert grad_out.shape == out.shape == (*query.shape[:3], value.shape[3]) and not bias_requires_grad
    assert logsumexp.shape == (len(cu_seqlens_q) - 1, query.shape[2], -(-max_seqlen_q // 32) * 32)
    grads = [torch.empty_like(x) for x in (query, key, value)]
    parts = _segments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, query[0], key[0], value[0])
    for index, (q, k) in enumerate(parts):
        part = Segment(query[0, q], key[0, k], value[0, k], scale, None)
        factors = part.dropped(dropout_p, int(philox_seed) + index)
        found = part.backward(grad_out[0, q], key.shape[2], factors)
        for grad, own, place in zip(grads, found, (q, k, k), strict=True):
            grad[0, place] = own
    return grads[0], grads[1], grads[2], torch.empty(())


_aten.impl("_efficient_attention_forward", efficient, "CPU")
_aten.impl("_efficient_attention_backward", efficient_backward, "CPU")
