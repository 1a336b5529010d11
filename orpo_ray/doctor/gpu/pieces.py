"""The stages `attention`, `gather` and `head`: what a layer of a large model, and its output, take by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.device import GIB
from orpo_ray.doctor.gpu.sizes import Model
from orpo_ray.modeling import head as head_module
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.kernels import Logprobs, logprobs_for
from orpo_ray.modeling.linear import product

_BACKWARD = 2.5
"""FLOPs of attention's backward for each of its forward, scores computed again (FlashAttention 2, arXiv 2307.08691)."""
_SEED = 2
_COMPARED = 256
"""Predictions that are held against PyTorch's own log-softmax of the same logits."""
_ROUNDING = 0.02
"""Nats: logits of bfloat16 may be rounded otherwise where there are more rows in a product."""


def stages(check: Check) -> Iterator[Stage]:
    for model in check.sizes.models:
        yield Stage("attention", 8, about(model), partial(attention, model=model))
        yield Stage("gather", 3, about(model), partial(_gather, model=model))
    for model in check.sizes.models:
        shape = {"model": model.name, "width": model.config.hidden_size, "vocabulary": model.config.vocab_size}
        yield Stage("head", 8, shape, partial(_head, model=model))


def about(model: Model) -> Fields:
    heads, kv_heads, head_dim = model.heads
    return {"model": model.name, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def _batch(check: Check, model: Model) -> PackedBatch:
    """A micro-batch as the steps have it."""
    examples = check.sizes.examples(_SEED, model.pairs, model.config.vocab_size)
    return pack(examples, score_prompts=True).to(check.device.place)


def attention(check: Check, model: Model) -> Iterator[Fields]:
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
        found = AttentionInterface()[NAME](
            nn.Module(), query, key, value, None, layout=batch.layout, scaling=head_dim**-0.5
        )
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
    """A prompt's keys beside those of each continuation, and the sum of the copies' gradients: as `modeling.varlen`
    does it, and by indexing and its own gradient."""
    device, batch = check.device, _batch(check, model)
    row = batch.layout.varlen
    _, kv_heads, head_dim = model.heads
    keys = torch.randn(batch.tokens, kv_heads, head_dim, device=device.place, dtype=torch.bfloat16).requires_grad_()
    given = torch.randn(len(row.keys), kv_heads, head_dim, device=device.place, dtype=torch.bfloat16)

    def used() -> Tensor:
        keys.detach().index_select(0, row.keys)
        summed = F.embedding_bag(row.copies, given.flatten(1), row.cu_copies, mode="sum", include_last_offset=True)
        return summed.view_as(keys)

    ways: dict[str, Callable[[], Tensor]] = {
        "used": used,
        "index": lambda: torch.autograd.grad(keys[row.keys], keys, given)[0],
    }
    for way, both in ways.items():
        yield {
            "way": way, "tokens": batch.tokens, "keys": len(row.keys), "forward_backward_ms": device.milliseconds(both),
            "same_gradient": torch.equal(both(), both()),
        }  # fmt: skip


def _head(check: Check, model: Model) -> Iterator[Fields]:
    """Log-probs of a micro-batch's predictions and their gradient, by how much of the logits is held at a time; by the
    fused kernel where there is one, and by PyTorch's operators."""
    device, batch = check.device, _batch(check, model)
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    linear = nn.Linear(width, vocabulary, bias=False, device=device.place, dtype=torch.bfloat16)
    head = LogprobHead.from_linear(linear)
    predictions = batch.targets.numel()
    hidden = torch.randn(predictions, width, device=device.place, dtype=torch.bfloat16).requires_grad_()
    given = torch.full((predictions,), -1 / predictions, device=device.place)
    flops = 6.0 * predictions * width * vocabulary
    first, targets = hidden.detach()[:_COMPARED], batch.targets[:_COMPARED]
    logits = product(first, linear.weight.detach())
    expected = logits.float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    fused = logprobs_for(logits)
    kernels = {"triton": fused, "torch": None} if fused is not None else {"torch": None}
    del logits

    def both() -> object:
        return torch.autograd.grad(head(hidden, batch.targets), (hidden, head.weight), given)

    for (kernel, chosen), size in itertools.product(kernels.items(), check.sizes.chunks):
        head.chunk_bytes = size
        with _taking(chosen):
            with torch.no_grad():
                error = float((head(first, targets) - expected).abs().max())
            device.free()
            before = device.held()
            device.start_peak()
            milliseconds = device.milliseconds(both, times=3, warm=1)
        yield {
            "kernel": kernel, "predictions": predictions, "chunk_mib": size / 2**20,
            "forward_backward_ms": milliseconds, "tflops": flops / milliseconds / 1e9,
            "extra_gib": (device.peak() - before) / GIB, "logp_error": error, "ok": error <= _ROUNDING,
        }  # fmt: skip


@contextmanager
def _taking(kernel: Logprobs | None) -> Iterator[None]:
    """Have heads take `kernel` in the body; None: PyTorch's operators."""
    setattr(head_module, "logprobs_for", lambda logits: kernel)  # noqa: B010  (mypy sees no function assigned)
    try:
        yield
    finally:
        setattr(head_module, "logprobs_for", logprobs_for)  # noqa: B010
