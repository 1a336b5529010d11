"""The log-prob head: from hidden states to the log-probs of given tokens, without keeping logits.

It takes the place of a model's output layer and owns the (possibly tied) weight as its own parameter, so
that ZeRO-3's hooks gather it for forward and backward; a loss computed on `lm_head.weight` from outside
the module fails there (trl#6372).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Logits of one chunk, in elements: 64 MiB in float32. Large enough for full matmul speed, small enough to
# stay out of the memory peak.
CHUNK_ELEMENTS = 1 << 24


class LogprobHead(nn.Linear):
    """A linear output layer that can also return log-probs of target tokens."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> LogprobHead:
        """A head that shares `linear`'s parameters."""
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits `(..., vocab)` of `hidden (..., width)`, as any output layer; or, with `targets (predictions,)`,
        the log-probs `(predictions,)` of those tokens, in float32 at least, for `hidden (predictions, width)`.
        """
        if targets is None:
            return super().forward(hidden)
        logps: Tensor = _ChunkedLogprob.apply(hidden, self.weight, self.bias, targets)  # type: ignore[no-untyped-call]
        return logps


class _ChunkedLogprob(torch.autograd.Function):
    """Log-softmax at the targets, over chunks of predictions; logits are computed again in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(targets.shape, dtype=exact, device=hidden.device)
        normalizers = torch.empty_like(logps)
        for rows in _chunks(targets.numel(), weight.shape[0]):
            logits = F.linear(hidden[rows], weight, bias).to(exact)  # (chunk, vocab)
            normalizers[rows] = logits.logsumexp(dim=-1)
            logps[rows] = logits.gather(1, targets[rows, None])[:, 0] - normalizers[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        exact = normalizers.dtype
        grad_hidden = torch.empty_like(hidden)
        # Many chunks add up in the weight's gradient: float32, whatever the weight's dtype.
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=exact, device=bias.device)
        for rows in _chunks(targets.numel(), weight.shape[0]):
            # d logp_t / d logits = onehot(t) - softmax, times the incoming gradient; all in one buffer.
            grad_logits = F.linear(hidden[rows], weight, bias).to(exact)
            grad_logits.sub_(normalizers[rows, None]).exp_().mul_(-grad_logps[rows, None])
            grad_logits.scatter_add_(1, targets[rows, None], grad_logps[rows, None])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            in_dtype = grad_logits.to(hidden.dtype)
            torch.mm(in_dtype, weight, out=grad_hidden[rows])
            if hidden.dtype == exact:
                grad_weight.addmm_(in_dtype.t(), hidden[rows])
            else:
                grad_weight += in_dtype.t() @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None if grad_bias is None else grad_bias.to(bias.dtype), None


def _chunks(predictions: int, vocab: int) -> list[slice]:
    size = max(16, CHUNK_ELEMENTS // vocab)
    return [slice(start, min(start + size, predictions)) for start in range(0, predictions, size)]
