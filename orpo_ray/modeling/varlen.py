"""Attention of a whole packed row in one call, by the variable-length kernels of CUDA devices.

They read the keys of a segment side by side, so those of a prompt are gathered for each of its continuations but the
first, which stands beside it. Backward is given what the row has, once, and gathers again. The gradients of a key's
copies are summed in their order by one reduction: the backward of indexing would sort or race.

What neither kernel takes (soft caps, sinks, odd widths of heads, float64; a window in float32 or beside dropout)
`modeling.attention` computes part by part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orpo_ray.data.packing import Layout, Varlen

_HALF = (torch.bfloat16, torch.float16)
_AMPERE = (8, 0)
_WIDEST = 256  # heads that FlashAttention takes
_ALIGNED = 16  # bytes that both kernels read at a time
_FROM_BOTTOM_RIGHT = 2  # the memory-efficient kernel's number for the causal mask in which the last query sees all keys


class Call(NamedTuple):
    """What a kernel is told beside query, keys and values."""

    row: Varlen
    scale: float | None
    """None: one over the square root of the head's width."""
    window: int | None
    """Keys that a query sees at most, its own among them; None: all that are not behind it."""
    dropout: float


class Kernel(NamedTuple):
    forward: Callable[[Tensor, Tensor, Tensor, Call], tuple[Tensor, ...]]
    """Of the query `(tokens, heads, head_dim)` and the gathered keys and values `(keys, kv_heads, head_dim)`: the
    result `(tokens, heads, value_dim)`, and what else `backward` needs of it."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], Call], tuple[Tensor, ...]]
    """Of the result's gradient, query, keys, values and what `forward` gave: the gradients of the three."""
    grouped: bool
    """Whether several heads of the query may share one of the keys."""


@cache
def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None: it is another kind, for which there are no kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def kernel_for(
    dtype: torch.dtype, head_dim: int, value_dim: int, capability: tuple[int, int], *, dropout: bool, slides: bool
) -> Kernel | None:
    """The quickest that computes this; None: there is none. `slides`: whether a window hides some keys.

    That is FlashAttention, which is for half precision and by way of `torch.nn.attention.varlen` (as of 2.13) has no
    dropout; else the memory-efficient kernel, which has, and is for float32 too. The latter's backward places a window
    as if segments had as many keys as queries (`kernel_backward.h` of 2.13), so it is given none.
    """
    if any(width * dtype.itemsize % _ALIGNED for width in (head_dim, value_dim)):
        return None
    ampere = capability >= _AMPERE
    # Between 192 and 224 it has no backward on consumers' cards.
    flash_width = head_dim == value_dim <= _WIDEST and not 192 < head_dim <= 224
    if dtype in _HALF and ampere and flash_width and not dropout:
        return FLASH
    takes = (torch.float32, torch.float16, *([torch.bfloat16] if ampere else []))
    return EFFICIENT if dtype in takes and not slides else None


def attend(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """`(1, tokens, heads, value_dim)`, contiguous, of `query (1, heads, tokens, head_dim)`, `key (1, kv_heads, tokens,
    head_dim)` and `value (1, kv_heads, tokens, value_dim)`. Tokens behind the layout's see nothing and are zero.

    `kernel`: what `kernel_for` has found for these; `window`: None where it hides nothing.
    """
    inputs = [x[0].transpose(0, 1) for x in (query, key, value)]
    padding = query.shape[2] - layout.segments[-1].end
    if padding:  # not by default: the gradient of a slice is a zeroed tensor of the whole
        inputs = [x[:-padding] for x in inputs]
    attended: Tensor = _Row.apply(*inputs, kernel, Call(layout.varlen, scale, window, dropout))  # type: ignore[no-untyped-call]
    return (F.pad(attended, (0, 0, 0, 0, 0, padding)) if padding else attended)[None]


class _Row(torch.autograd.Function):
    """`(tokens, heads, value_dim)` of query, key and value `(tokens, heads, width)`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, call: Call) -> Tensor:
        query = query.contiguous()
        attended, *kept = kernel.forward(query, *_gathered(query, key, value, kernel, call.row), call)
        ctx.kernel, ctx.call = kernel, call
        ctx.save_for_backward(query, key, value, attended, *kept)
        return attended

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, call = ctx.kernel, ctx.call
        query, key, value, *results = ctx.saved_tensors
        seen = _gathered(query, key, value, kernel, call.row)
        of_query, *of_seen = kernel.backward(grad.contiguous(), query, *seen, tuple(results), call)
        of_own = (_summed(each, own.shape[1], call.row) for each, own in zip(of_seen, (key, value), strict=True))
        return of_query, *of_own, None, None


def _gathered(query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, row: Varlen) -> tuple[Tensor, Tensor]:
    """Keys and values `(keys, heads, width)` as the kernel reads them."""
    groups = 1 if kernel.grouped else query.shape[1] // key.shape[1]
    copies = len(row.keys) > len(key)  # else each prompt has one continuation at most
    keys, values = (each.index_select(0, row.keys) if copies else each.contiguous() for each in (key, value))
    return (keys, values) if groups == 1 else (keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1))


def _summed(grad: Tensor, heads: int, row: Varlen) -> Tensor:
    """Gradients `(keys, heads or a multiple, width)` of what was gathered, as those of the row's own `(tokens, heads,
    width)`. Sums of half precision are of float32, on CUDA."""
    if grad.shape[1] != heads:
        grad = grad.reshape(len(grad), heads, -1, grad.shape[2]).sum(2)
    if len(row.keys) == len(row.cu_copies) - 1:
        return grad
    summed = F.embedding_bag(row.copies, grad.flatten(1), row.cu_copies, mode="sum", include_last_offset=True)
    return summed.view(-1, *grad.shape[1:])


def _flash(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, ...]:
    from torch.nn.attention import varlen  # noqa: F401  (it brings the operators, and takes a second to import)

    # The operator, not `varlen_attn`: torch 2.11's knows no `enable_gqa`, though the kernel shares heads in both.
    found: tuple[Tensor, ...] = torch.ops.torch_attn._varlen_attn(
        query, key, value, *call.row.bounds, call.window is None, call.scale, _sides(call.window)
    )
    return found


def _flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, results: tuple[Tensor, ...], call: Call
) -> tuple[Tensor, ...]:
    attended, log_sums, seed = results
    found: tuple[Tensor, ...] = torch.ops.torch_attn._varlen_attn_backward(
        grad, query, key, value, attended, log_sums, *call.row.bounds, call.window is None, seed, call.scale,
        _sides(call.window),
    )  # fmt: skip
    return found


def _sides(window: int | None) -> list[int]:
    """Keys to the left and to the right of the query's own; -1: all."""
    return [-1 if window is None else window - 1, 0]


def _efficient(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, ...]:
    attended, log_sums, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, *call.row.bounds, call.dropout, _FROM_BOTTOM_RIGHT, True,
        scale=call.scale,
    )  # fmt: skip
    return attended[0], log_sums, seed, offset


def _efficient_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, results: tuple[Tensor, ...], call: Call
) -> tuple[Tensor, ...]:
    attended, log_sums, seed, offset = results
    *found, _ = torch.ops.aten._efficient_attention_backward(
        grad[None], query[None], key[None], value[None], None, attended[None], *call.row.bounds, log_sums, call.dropout,
        seed, offset, _FROM_BOTTOM_RIGHT, False, scale=call.scale,
    )  # fmt: skip
    return tuple(each[0] for each in found)


FLASH = Kernel(_flash, _flash_backward, grouped=True)
EFFICIENT = Kernel(_efficient, _efficient_backward, grouped=False)
