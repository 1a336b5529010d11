"""Matrix products in float32 on a CPU by oneDNN, which PyTorch by itself uses for half precision only.

MKL takes a path of 256-bit registers on CPUs that are not Intel's; oneDNN takes the registers that there are, twice the
operations a second on one with AVX-512 (benchmarks/NOTES.md). Elsewhere, and in other dtypes, all is PyTorch's own.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_AVAILABLE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ROWS = 32
"""oneDNN compiles a kernel for each shape that it meets and keeps a thousand: rows are best a multiple of this."""


def by_onednn(tensor: Tensor) -> bool:
    """Whether products of `tensor` are oneDNN's here."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and _AVAILABLE


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a @ b.T + bias`, without a gradient: `(rows, columns)` of `a (rows, n)`, `b (columns, n)`, `bias (columns,)`."""
    if by_onednn(a):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return result
    return F.linear(a, b, bias)


def product_in_float32(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`product`, whose result is in float32 where `a`, `b` and `bias` are in half precision.

    A GPU adds up in float32 as it is, and is asked not to round; elsewhere `b` is copied to float32 first.
    """
    if a.device.type == "cuda" and a.dtype in (torch.bfloat16, torch.float16):
        result = torch.mm(a, b.t(), out_dtype=torch.float32)
        return result if bias is None else result.add_(bias)
    exact = torch.promote_types(a.dtype, torch.float32)
    return product(a.to(exact), b.to(exact), None if bias is None else bias.to(exact))


class SharedLinear(nn.Linear):
    """A linear layer in the place of another, whose parameters it shares."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """A layer of this class with `linear`'s own parameters."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)


class Linear(SharedLinear):
    """`nn.Linear` whose products, forward and backward, are those of `product`."""

    def forward(self, input: Tensor) -> Tensor:
        """`(..., out_features)` of `input (..., in_features)`."""
        if not by_onednn(input):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        result: Tensor = _Product.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result.view(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """`input @ weight.T + bias` of `input (rows, n)`, `weight (columns, n)`, `bias (columns,)`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return product(input, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_input else None,
            gram(grad, input) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def gram(a: Tensor, b: Tensor) -> Tensor:
    """`a.T @ b`, without a gradient: `(columns of a, columns of b)` of `a (rows, columns)`, `b (rows, columns)`."""
    if not by_onednn(a):
        return a.t() @ b
    # oneDNN is given the first factor row by row, so that is copied: the narrower of the two.
    return product(a.t(), b.t()) if a.shape[1] <= b.shape[1] else product(b.t(), a.t()).t()


def quicken(network: nn.Module) -> None:
    """Put a `Linear` with the same parameters in the place of every `nn.Linear` of `network`."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            network.set_submodule(name, Linear.from_linear(module))
