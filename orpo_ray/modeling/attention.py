"""Shared-prefix attention, registered with transformers as the attention implementation `shared_prefix`.

A packed row's `Layout` comes in as the forward keyword `layout`, which transformers hands through every
layer (and through the recomputation of gradient checkpointing) to the function below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from orpo_ray.data.packing import Block, Layout
from orpo_ray.errors import UserError

NAME = "shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row.

    `query (1, heads, tokens, head_dim)`, `key` and `value (1, kv_heads, tokens, head_dim)`; returns
    `(1, tokens, heads, head_dim)`. Raises `UserError` for a model whose attention needs what this does not
    compute (soft-capped scores, attention sinks).
    """
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise UserError(f"{type(module).__name__} uses {name}, which packed attention does not compute")
    # The varlen kernel exists for CUDA in half precision and has no dropout.
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return _varlen(query[0], key[0], value[0], layout, scaling, sliding_window)[None], None
    return _part_by_part(query, key, value, layout, scaling, dropout, sliding_window), None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """One FlashAttention call: keys of the prompt gathered per continuation, causal aligned bottom-right."""
    from torch.nn.attention.varlen import varlen_attn  # CUDA builds of torch only

    keys, cu_seq_q, cu_seq_k, max_q, max_k = layout.varlen
    attended = varlen_attn(
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1)[keys],
        value.transpose(0, 1)[keys],
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=key.shape[0] != query.shape[0],
    )
    assert isinstance(attended, Tensor)  # a tuple only where auxiliary outputs are asked for
    return attended


def _part_by_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Scaled-dot-product attention of one of the layout's parts after another: the path of CPUs and of float32."""
    compute: Callable[..., Tensor] = partial(
        F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    # split, not slices: the gradient of each slice would be a zeroed tensor of the whole row.
    sizes = [part.end - part.start for part in layout.parts]
    padding = query.shape[2] - sum(sizes)  # behind the row (see `policy.hidden_states`)
    queries, keys, values = (torch.split(x.transpose(1, 2), [*sizes, padding], dim=1) for x in (query, key, value))
    attended = []
    prompt = 0  # the part that the following continuations see
    for index, (part, mask) in enumerate(zip(layout.parts, layout.masks(window, query.dtype), strict=True)):
        own = queries[index], keys[index], values[index]  # (1, tokens, heads, head_dim) each
        if isinstance(part, Block):
            rows = len(part.segment)
            inputs = (_filled(x[0], part).view(rows, -1, *x.shape[2:]).transpose(1, 2) for x in own)
            result = _emptied(compute(*inputs, attn_mask=mask).transpose(1, 2).flatten(0, 1), part)[None]
        else:
            mine, seen, read = own
            if part.prompt_end > part.prompt_start:
                seen, read = torch.cat([keys[prompt], seen], dim=1), torch.cat([values[prompt], read], dim=1)
            else:
                prompt = index
            inputs = (x.transpose(1, 2) for x in (mine, seen, read))
            result = compute(*inputs, attn_mask=mask, is_causal=mask is None).transpose(1, 2)
        attended.append(result)
    if padding:
        attended.append(query.new_zeros(1, padding, *attended[0].shape[2:]))
    return torch.cat(attended, dim=1)


def _filled(tokens: Tensor, block: Block) -> Tensor:
    slots: Tensor = _Filled.apply(tokens, block)  # type: ignore[no-untyped-call]
    return slots


def _emptied(slots: Tensor, block: Block) -> Tensor:
    tokens: Tensor = _Emptied.apply(slots, block)  # type: ignore[no-untyped-call]
    return tokens


class _Filled(torch.autograd.Function):
    """Tokens `(tokens, ...)` in the slots `(slots, ...)` of a block. Nothing comes back from padding."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, block: Block) -> Tensor:
        ctx.block = block
        return tokens.index_select(0, block.slots)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.block.places), None


class _Emptied(torch.autograd.Function):
    """The tokens `(tokens, ...)` in the slots `(slots, ...)` of a block: padding is left out."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, block: Block) -> Tensor:
        ctx.block = block
        return slots.index_select(0, block.places)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        slots = grad.new_zeros(len(ctx.block.slots), *grad.shape[1:])
        return slots.index_copy_(0, ctx.block.places, grad), None


AttentionInterface.register(NAME, shared_prefix_attention)
# The layout is the mask: transformers must not build a dense one of (tokens, tokens).
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
