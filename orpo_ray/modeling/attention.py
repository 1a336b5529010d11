"""Shared-prefix attention, registered with transformers as the attention implementation `shared_prefix`.

A packed row's `Layout` comes in as the forward keyword `layout`, which transformers hands through every
layer (and through the recomputation of gradient checkpointing) to the function below.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from orpo_ray.data.packing import Block, Layout, causal_mask
from orpo_ray.modeling.varlen import Kernel, attend, capability_of, kernel_for
from orpo_ray.telemetry.logs import log

NAME = "shared_prefix"
_CHUNKS = -1


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row; without a layout, of texts of one length as they are, a row each.

    `query (1, heads, tokens, head_dim)`, `key` and `value (1, kv_heads, tokens, head_dim)`; returns
    `(1, tokens, heads, head_dim)`, contiguous. `attention_mask`: None, or what `_window_alone` made of a window that
    the model puts into its mask alone. `softcap` bounds scores (Gemma 2); `s_aux (heads,)` are sinks (gpt-oss): scores
    of a key that everybody sees and that has no value. Raises `NotImplementedError` for attention in chunks.
    """
    window = sliding_window if attention_mask is None else int(attention_mask)
    if window == _CHUNKS:
        raise NotImplementedError("its attention is in chunks")
    if layout and window is not None and window >= layout.longest:
        window = None  # it hides nothing
    if softcap is not None or s_aux is not None:
        if capability_of(query.device) is not None:
            _say_slow("no kernel has its soft cap or its sinks")
        compute: Callable[..., Tensor] = partial(_attend, scale=scaling, softcap=softcap, sinks=s_aux, dropout=dropout)
    elif layout and (kernel := _kernel(query, value, dropout, window)) is not None:
        return attend(kernel, query, key, value, layout, scale=scaling, window=window, dropout=dropout), None
    else:
        compute = partial(
            F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
    if layout is None:
        mask = causal_mask(query.shape[2], 0, window, query.device)
        attended = compute(query, key, value, attn_mask=mask, is_causal=mask is None)
        return attended.transpose(1, 2).contiguous(), None
    return _part_by_part(compute, query, key, value, layout, window), None


def _kernel(query: Tensor, value: Tensor, dropout: float, window: int | None) -> Kernel | None:
    """That which computes a whole row at once; None: none does, on a CPU or for these."""
    capability = capability_of(query.device)
    if capability is None:
        return None
    head_dim, value_dim = query.shape[3], value.shape[3]
    slides = window is not None
    kernel = kernel_for(query.dtype, head_dim, value_dim, capability, dropout=dropout > 0, slides=slides)
    if kernel is None:
        heads = f"{head_dim}" if head_dim == value_dim else f"{head_dim} and {value_dim}"
        within = " within a window" * slides + " with dropout" * (dropout > 0)
        device = ".".join(map(str, capability))
        _say_slow(f"none is for heads of {heads} in {query.dtype}{within} on a device of compute capability {device}")
    return kernel


def has_kernels(device: torch.device) -> bool:
    """Whether attention may be computed there otherwise in half precision than in float32."""
    return capability_of(device) is not None


@cache
def _say_slow(why: str) -> None:
    """Once in a process, since it is so in every layer and batch."""
    log("attention takes a kernel for each segment, not one for all", logging.WARNING, why=why)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool = False,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """As `F.scaled_dot_product_attention`, with what that does not compute."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        attn_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)], dim=3)
    weights = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = weights if sinks is None else weights[..., :-1]
    return F.dropout(weights, dropout) @ value


def _part_by_part(
    compute: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None
) -> Tensor:
    """Attention of one of the layout's parts after another: on CPUs, and where no kernel takes the whole row."""
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
    return torch.cat(attended, dim=1).contiguous()


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


def _window_alone(
    *arguments: Any, mask_function: Callable[..., Any], local_size: int | None = None, **options: Any
) -> Tensor | None:
    """What transformers hands to layers as mask. The layout is the mask, so there is no dense one of (tokens, tokens);
    but some models (Qwen2-MoE, Phi-MoE) tell their window to nothing else: it is a number here. `_CHUNKS` stands for
    another mask than a window's (Llama 4).
    """
    if local_size is None:
        return None
    in_chunks = any("chunked" in name for name in _names(mask_function))
    return torch.tensor(_CHUNKS if in_chunks else local_size).view(1, 1, 1, 1)


def _names(function: Callable[..., Any]) -> Iterator[str]:
    """Of a mask's function and of those that it is put together from."""
    yield function.__qualname__
    for cell in function.__closure__ or ():
        within = cell.cell_contents
        for part in within if isinstance(within, tuple) else (within,):
            if inspect.isfunction(part):
                yield from _names(part)


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, _window_alone)
