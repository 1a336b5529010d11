"""The log-prob head: from hidden states to the log-probs of given tokens, in a bounded amount of memory.

It takes the place of a model's output layer and owns the (possibly tied) weight as its own parameter, so
that ZeRO-3's hooks gather it for forward and backward; a loss computed on `lm_head.weight` from outside
the module fails there (trl#6372).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from orpo_ray.modeling.kernels import logprobs_for
from orpo_ray.modeling.linear import SharedLinear, gram, product, product_in_float32

# Elements that softmax works on at once: on a CPU few enough to stay in its cache, on a device enough to fill it.
_CPU_BLOCK = 1 << 22
_DEVICE_BLOCK = 1 << 25


class LogprobHead(SharedLinear):
    """A linear output layer that can also return log-probs of target tokens.

    Predictions are computed in chunks of at most `chunk_bytes` of logits, of which one is held at a time. The one that
    is held when forward ends serves backward as it is: where one chunk is enough, no logits are computed twice.
    """

    chunk_bytes = 1 << 30
    scale = 1.0
    """Of the logits (Cohere, Granite)."""
    softcap: float | None = None
    """What bounds the logits (Gemma 2): `softcap * tanh(logits / softcap)`."""
    float32_logits = False
    """Whether a product in half precision is left in float32, in which it was added up: not rounded to what a logit of
    17 has of bfloat16, 0.06, before its softmax."""

    @classmethod
    def of(cls, network: PreTrainedModel) -> LogprobHead:
        """In the place of a network's output layer. What a network does to its logits behind that layer, the
        log-probs have had done to them; the logits have not, as it goes on doing it. They are in float32 where the
        network's configuration says so as vLLM reads it: `head_dtype`."""
        head = cls.from_linear(network.get_output_embeddings())
        config = network.config.get_text_config()
        factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
        head.scale = float(factor) / float(divisor)
        head.softcap = getattr(config, "final_logit_softcapping", None)
        head.float32_logits = getattr(network.config, "head_dtype", None) == "float32"
        return head

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits `(..., vocab)` of `hidden (..., width)`, as any output layer; or, with `targets (predictions,)`,
        the log-probs `(predictions,)` of those tokens, in float32 at least, for `hidden (predictions, width)`.
        """
        if targets is None:
            return self._in_float32(hidden) if self.float32_logits else super().forward(hidden)
        rows = max(1, self.chunk_bytes // (self.out_features * self.bytes_per_logit))
        way = _Way(self.scale, self.softcap, self.float32_logits, torch.is_grad_enabled())
        logps: Tensor = _Logprob.apply(  # type: ignore[no-untyped-call]
            hidden, self.weight, self.bias, targets, _slices(targets.numel(), rows), way
        )
        return logps

    def _in_float32(self, hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            logits = product_in_float32(hidden.flatten(0, -2), self.weight, self.bias)
            return logits.view(*hidden.shape[:-1], self.out_features)
        exact = _exact(hidden)
        return F.linear(hidden.to(exact), self.weight.to(exact), None if self.bias is None else self.bias.to(exact))

    @property
    def bytes_per_logit(self) -> int:
        """Held at once: a logit, and the gradient in its place; `float32_logits` have theirs, of half precision, beside
        them."""
        size = self.weight.element_size()
        return 4 + size if self.float32_logits and size < 4 else size


class _Way(NamedTuple):
    """How log-probs are made of logits."""

    scale: float = 1.0
    """What logits are multiplied by behind the layer."""
    softcap: float | None = None
    float32: bool = False
    """Whether the layer's product is."""
    learns: bool = True
    """Whether backward may follow."""

    @property
    def as_they_are(self) -> bool:
        return self.scale == 1.0 and self.softcap is None

    def behind(self, logits: Tensor) -> Tensor:
        """What is done to logits behind the layer, in place."""
        logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def back(self, residuals: Tensor, logits: Tensor) -> Tensor:
        """`residuals`, gradients of what `behind` gave as `logits`, made those of what it was given, in place."""
        residuals.mul_(self.scale)
        return residuals if self.softcap is None else residuals.mul_(1 - (logits / self.softcap).square())


class _Logprob(torch.autograd.Function):
    """Log-softmax at the targets.

    The gradient of a log-prob with respect to its logits is `onehot(target) - softmax`, known in forward; only its
    factor, one number per prediction, comes in backward. So forward leaves `softmax - onehot` in place of the
    logits, and backward is two matrix products of it, with the factors on the small side.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunks: list[slice],
        way: _Way,
    ) -> Tensor:
        logps = torch.empty(targets.shape, dtype=_exact(hidden), device=hidden.device)
        way = way._replace(learns=way.learns and any(ctx.needs_input_grad))
        residuals = None
        for rows in chunks:
            del residuals  # before there are others
            logps[rows], residuals = _residuals(hidden[rows], weight, bias, targets[rows], way)
        ctx.save_for_backward(hidden, weight, bias, targets)
        # Not a saved tensor: backward lets go of it as soon as it is used.
        ctx.chunks, ctx.held, ctx.way = chunks, residuals, way
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, targets = ctx.saved_tensors
        factors = -grad_logps[:, None]  # as exact as it came: rounded, it would be one error for all tokens alike
        scaled = (hidden * factors).to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        residuals, ctx.held = ctx.held, None  # a second backward computes it again
        for rows in reversed(ctx.chunks):  # the last is held
            if residuals is None:
                residuals = _residuals(hidden[rows], weight, bias, targets[rows], ctx.way)[1]
            grad_hidden[rows] = product(residuals, weight.t())
            if ctx.needs_input_grad[1]:
                grad_weight = _plus_product(grad_weight, residuals, scaled[rows])
            if ctx.needs_input_grad[2]:
                grad_bias = _plus_product(grad_bias, residuals, factors[rows].to(hidden.dtype))
            residuals = None
        return (
            (grad_hidden * factors).to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias[:, 0].to(weight.dtype),
            None,
            None,
            None,
        )


def _residuals(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, way: _Way
) -> tuple[Tensor, Tensor | None]:
    """Log-probs `(rows,)` of `targets (rows,)`, and, where something learns by it, the gradient `(rows, vocab)` of
    minus them by the layer's logits, in the dtype of `hidden`."""
    logits = (product_in_float32 if way.float32 else product)(hidden, weight, bias)
    return _of_logits(logits, targets, way, hidden.dtype)


def logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probs, in float32 at least, of `targets (...)` by `logits (..., vocab)`, in the shape of `targets`."""
    way = _Way(learns=torch.is_grad_enabled() and logits.requires_grad)
    logps: Tensor = _LogprobOfLogits.apply(logits, targets, way)  # type: ignore[no-untyped-call]
    return logps


class _LogprobOfLogits(torch.autograd.Function):
    """Log-softmax at the targets: of the logits one copy is held, the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, way: _Way) -> Tensor:
        own = logits.clone(memory_format=torch.contiguous_format).flatten(0, -2)
        logps, residuals = _of_logits(own, targets.flatten(), way, logits.dtype)
        ctx.residuals = None if residuals is None else residuals.view_as(logits)
        return logps.view_as(targets)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.residuals * -grad_logps[..., None]).to(ctx.residuals.dtype), None, None


def _of_logits(logits: Tensor, targets: Tensor, way: _Way, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Log-probs `(rows,)` of `targets (rows,)` by `logits (rows, vocab)`, which do not stay as they are; and, where
    something learns by it, the gradient of minus them in `dtype`: `softmax - onehot(target)`, through what lies behind
    the layer. It takes the logits' place where it is of their dtype."""
    if (fused := logprobs_for(logits)) is not None:
        residuals = None
        if way.learns:
            residuals = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        return fused(logits, targets, residuals, way.scale, way.softcap), residuals
    if way.as_they_are:
        logps = _log_softmax(logits, targets, way.learns)
        return logps, logits.to(dtype) if way.learns else None
    given = way.behind(logits)
    own = given.clone() if way.softcap and way.learns else given
    logps = _log_softmax(own, targets, way.learns)
    return logps, way.back(own, given).to(dtype) if way.learns else None


def _log_softmax(logits: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """Log-probs `(rows,)` of `targets (rows,)` by `logits (rows, vocab)`, by PyTorch's operators. In place of the
    logits is, where it `learns`, `softmax - onehot(target)`, and else nothing of use."""
    exact = _exact(logits)
    logps = torch.empty(targets.shape, dtype=exact, device=logits.device)
    size = max(1, (_CPU_BLOCK if logits.device.type == "cpu" else _DEVICE_BLOCK) // logits.shape[1])
    scratch = None if logits.dtype == exact else logits.new_empty(min(size, len(logits)), logits.shape[1], dtype=exact)
    for rows in _slices(len(logits), size):
        block, target = logits[rows], targets[rows, None]
        every = block if scratch is None else scratch[: len(block)].copy_(block)
        torch.log_softmax(every, -1, out=every)
        logp = every.gather(1, target)
        logps[rows] = logp[:, 0]
        if not learns:
            continue
        every.exp_()
        if scratch is not None:
            block.copy_(every)
        # The target's own entry apart: in bfloat16, softmax - 1 of a probable token would have no digit left.
        block.scatter_(1, target, logp.expm1().to(block.dtype))
    return logps


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """`total + a.T @ b`; several products add up in float32 at least, whatever the dtype of `a` and `b`."""
    return gram(a, b) if total is None else total.to(_exact(a)).add_(gram(a, b))


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _slices(rows: int, size: int) -> list[slice]:
    """`range(rows)` in slices of `size`; what is left over comes first."""
    starts = [0, *range(rows % size or size, rows, size)]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], rows], strict=True)]
