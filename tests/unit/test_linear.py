"""Linear layers by oneDNN compute what PyTorch's own do, to rounding, and repeat bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, build
from torch import Tensor, nn

from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.linear import Linear, by_onednn, gram, product, quicken
from orpo_ray.modeling.policy import PackedPolicy


def gradients(layer: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    input = input.clone().requires_grad_()
    result = layer(input)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return result.detach(), *torch.autograd.grad((result * weights).sum(), [input, *trained])


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (7, 40), (40, 7), (64, 64)])
@pytest.mark.parametrize("shape", [(1,), (33,), (2, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_result_and_gradients_equal_those_of_float64(
    n: int, columns: int, shape: tuple[int, ...], bias: bool, trained: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(n, columns, bias=bias).requires_grad_(trained)
    input = torch.randn(*shape, n)
    own = Linear.from_linear(plain)
    assert own.weight is plain.weight
    expected = gradients(copy.deepcopy(plain).double(), input.double())
    first, second = gradients(own, input), gradients(own, input)
    for actual, again, exact in zip(first, second, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(actual, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_pytorchs_own(dtype: torch.dtype) -> None:
    plain, input = nn.Linear(8, 5, dtype=dtype), torch.randn(3, 8, dtype=dtype)
    assert not by_onednn(input)
    for actual, expected in zip(gradients(Linear.from_linear(plain), input), gradients(plain, input), strict=True):
        assert torch.equal(actual, expected)


def test_products_of_either_shape() -> None:
    a, b = torch.randn(50, 6), torch.randn(50, 9)
    torch.testing.assert_close(gram(a, b), a.t() @ b)
    torch.testing.assert_close(gram(b, a), b.t() @ a)
    torch.testing.assert_close(product(a, b[:, :6]), a @ b[:, :6].t())


def test_a_network_keeps_its_parameters_and_names() -> None:
    network = build(FAMILIES["llama-grouped-query"], NAME)
    before = dict(network.named_parameters())
    quicken(network.base_model)
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    kinds = {type(module) for module in network.base_model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {Linear}
    assert not any(type(m) is nn.Linear for m in PackedPolicy(network).model.base_model.modules())
