"""The stages `attention`, `gather` and `head`: what a layer of a large model, and its output, take by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from orpo_ray.data.packing import Layout, PackedBatch, pack
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.device import GIB
from orpo_ray.doctor.gpu.sizes import Model
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.head import LogprobHead

_BACKWARD = 2.5
"""FLOPs of attention's backward for each of its forward, scores computed again (FlashAttention 2, arXiv 2307.08691)."""
_SEED = 2


def stages(check: Check) -> Iterator[Stage]:
    for model in check.sizes.models:
        heads, kv_heads, head_dim = model.heads
        about = {"model": model.name, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        yield Stage("attention", 8, about, partial(_attention, model=model))
        yield Stage("gather", 3, about, partial(_gather, model=model))
    for model in check.sizes.models:
        about = {"model": model.name, "width": model.config.hidden_size, "vocabulary": model.config.vocab_size}
        yield Stage("head", 8, about, partial(_head, model=model))


def _batch(check: Check, model: Model) -> PackedBatch:
    """A micro-batch as the steps have it."""
    examples = check.sizes.examples(_SEED, model.pairs, model.config.vocab_size)
    return pack(examples, score_prompts=True).to(check.device.place)


def _attention(check: Check, model: Model) -> Iterator[Fields]:
    """Of one layer: packed, in each precision; and padded, which computes prompts twice and padding."""
    device, batch = check.device, _batch(check, model)
    heads, kv_heads, head_dim = model.heads
    spans = np.asarray(batch.layout.segments)
    queries, prompts = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    visible = float((queries * prompts + queries * (queries + 1) / 2).sum())
    flops = 4.0 * heads * head_dim * visible

    def inputs(rows: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        shapes = ((rows, number, tokens, head_dim) for number in (heads, kv_heads, kv_heads))
        query, key, value = (torch.randn(*s, device=device.place, dtype=dtype).requires_grad_() for s in shapes)
        return query, key, value

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention = AttentionInterface()[NAME]
        found = attention(nn.Module(), query, key, value, None, layout=batch.layout, scaling=head_dim**-0.5)
        attended: Tensor = found[0]
        return attended

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)

    rows, longest = int((prompts > 0).sum()), int((queries + prompts).max())
    for way, compute, shape, dtype in (
        ("packed", packed, (1, batch.tokens), torch.bfloat16),
        ("padded", padded, (rows, longest), torch.bfloat16),
        ("packed", packed, (1, batch.tokens), torch.float32),
    ):
        own = inputs(*shape, dtype)
        given = torch.randn_like(compute(*own))

        def both(compute=compute, own=own, given=given) -> object:  # type: ignore[no-untyped-def]
            return torch.autograd.grad(compute(*own), own, given)

        with torch.no_grad():
            forward = device.milliseconds(lambda compute=compute, own=own: compute(*own))  # type: ignore[misc]
        whole = device.milliseconds(both)
        yield {
            "way": way, "dtype": str(dtype).removeprefix("torch."), "tokens": shape[0] * shape[1],
            "forward_ms": forward, "forward_backward_ms": whole, "useful_tflops": (1 + _BACKWARD) * flops / whole / 1e9,
        }  # fmt: skip
        del own, given, both


def _gather(check: Check, model: Model) -> Iterator[Fields]:
    """A prompt's keys beside those of each continuation, in two ways. The gradient of an index adds up by atomics on a
    GPU, in an order that is never the same; that of slices is a sum of slices."""
    device, batch = check.device, _batch(check, model)
    _, kv_heads, head_dim = model.heads
    keys = torch.randn(batch.tokens, kv_heads, head_dim, device=device.place, dtype=torch.bfloat16).requires_grad_()
    index = _positions(batch.layout).to(device.place)
    given = torch.randn(len(index), kv_heads, head_dim, device=device.place, dtype=torch.bfloat16)
    for way, gather in (("index", lambda: keys[index]), ("slices", lambda: _by_slices(keys, batch.layout))):
        milliseconds = device.milliseconds(lambda gather=gather: torch.autograd.grad(gather(), keys, given))  # type: ignore[misc]
        gradients = [torch.autograd.grad(gather(), keys, given)[0] for _ in range(2)]
        yield {
            "way": way, "tokens": batch.tokens, "keys": len(index), "forward_backward_ms": milliseconds,
            "same_gradient": torch.equal(*gradients),
        }  # fmt: skip


def _positions(layout: Layout) -> Tensor:
    """`(keys,)` int64: packed positions of what each segment sees, one segment after the other."""
    seen = [np.r_[prompt_start:prompt_end, start:end] for start, end, prompt_start, prompt_end in layout.segments]
    return torch.from_numpy(np.concatenate(seen))


def _by_slices(keys: Tensor, layout: Layout) -> Tensor:
    """The same rows of `keys`. Split once: the gradient of each slice by itself would be a tensor of the whole row."""
    parts = torch.split(keys, [segment.end - segment.start for segment in layout.segments])
    found, prompt = [], parts[0]
    for part, segment in zip(parts, layout.segments, strict=True):
        if segment.prompt_end == segment.prompt_start:
            prompt = part
        else:
            found.append(prompt)
        found.append(part)
    return torch.cat(found)


def _head(check: Check, model: Model) -> Iterator[Fields]:
    """Log-probs of a micro-batch's predictions and their gradient, by how much of the logits is held at a time."""
    device, batch = check.device, _batch(check, model)
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    linear = nn.Linear(width, vocabulary, bias=False, device=device.place, dtype=torch.bfloat16)
    head = LogprobHead.from_linear(linear)
    predictions = batch.targets.numel()
    hidden = torch.randn(predictions, width, device=device.place, dtype=torch.bfloat16).requires_grad_()
    given = torch.full((predictions,), -1 / predictions, device=device.place)
    flops = 6.0 * predictions * width * vocabulary

    def both() -> object:
        return torch.autograd.grad(head(hidden, batch.targets), (hidden, head.weight), given)

    for size in check.sizes.chunks:
        head.chunk_bytes = size
        device.free()
        before = device.held()
        device.start_peak()
        milliseconds = device.milliseconds(both, times=3, warm=1)
        yield {
            "predictions": predictions, "chunk_mib": size / 2**20, "forward_backward_ms": milliseconds,
            "tflops": flops / milliseconds / 1e9, "extra_gib": (device.peak() - before) / GIB,
        }  # fmt: skip
