"""Shared-prefix attention, registered with transformers as the attention implementation `shared_prefix`.

A packed row's `Layout` comes in as the forward keyword `layout`, which transformers hands through every
layer (and through the recomputation of gradient checkpointing) to the function below.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from orpo_ray.data.packing import Layout
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
    return _per_segment(query, key, value, layout, scaling, dropout, sliding_window), None


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


def _per_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Scaled-dot-product attention segment by segment: the path of CPUs and of float32."""
    gqa = key.shape[1] != query.shape[1]
    # split, not slices: the gradient of each slice would be a zeroed tensor of the whole row.
    sizes = [segment.end - segment.start for segment in layout.segments]
    queries, keys, values = (torch.split(part, sizes, dim=2) for part in (query, key, value))
    attended = []
    prompt = 0  # the segment that the following continuations see
    for index, (segment, mask) in enumerate(zip(layout.segments, layout.masks(window), strict=True)):
        seen, read = keys[index], values[index]
        if segment.prompt_end > segment.prompt_start:
            seen, read = torch.cat([keys[prompt], seen], dim=2), torch.cat([values[prompt], read], dim=2)
        else:
            prompt = index
        attended.append(
            F.scaled_dot_product_attention(
                queries[index],
                seen,
                read,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=gqa,
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2)


AttentionInterface.register(NAME, shared_prefix_attention)
# The layout is the mask: transformers must not build a dense one of (tokens, tokens).
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
