"""ORPO's gradient taken apart (Eq. 8 to 10) equals autograd's gradient of `L_OR`."""

from __future__ import annotations

import math

import pytest
import torch
from families import FAMILIES, build, random_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orpo_ray.data.packing import pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.gradient_analysis import gradient_factors, gradient_metrics
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.terms import Totals, mean_logps

LOGP = st.one_of(st.floats(-60, -1e-9), st.sampled_from([-1e-9, -1e-6, -math.log(2), -60.0]))


def plain_odds_ratio_loss(logps: Tensor) -> Tensor:
    """`L_OR` of each pair, as the paper writes it (Eq. 4 and 7)."""
    odds = logps.exp() / (1 - logps.exp())
    return -torch.log(torch.sigmoid(torch.log(odds[:, 0] / odds[:, 1])))


@given(chosen=LOGP, rejected=LOGP)
def test_factors_against_their_formulas(chosen: float, rejected: float) -> None:
    factors = gradient_factors(torch.tensor([[chosen, rejected]], dtype=torch.float64))
    weight_w, weight_l = -1 / math.expm1(chosen), -1 / math.expm1(rejected)
    odds_ratio = math.exp(chosen - rejected) * weight_w / weight_l
    assert float(factors.delta) == pytest.approx(1 / (1 + odds_ratio), rel=1e-9)
    assert (float(factors.chosen), float(factors.rejected)) == pytest.approx((weight_w, weight_l), rel=1e-9)


def test_minus_delta_h_is_the_gradient_with_respect_to_mean_logps() -> None:
    torch.manual_seed(0)
    logps = -(0.01 + 3 * torch.rand(50, 2, dtype=torch.float64))
    expected = torch.autograd.functional.jacobian(lambda x: plain_odds_ratio_loss(x).sum(), logps)
    factors = gradient_factors(logps)
    # h's two gradients are here unit vectors: of log P(chosen) with respect to itself, and so on.
    actual = torch.stack([-factors.delta * factors.chosen, factors.delta * factors.rejected], dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


def test_minus_delta_h_is_the_gradient_of_the_objective() -> None:
    """The same against `orpo` itself: its NLL taken away, its means undone."""
    torch.manual_seed(1)
    lengths = torch.randint(1, 20, (9, 3))
    sums = (-2 * torch.rand(9, 3, dtype=torch.float64) * lengths).requires_grad_()
    totals = Totals(9, int(lengths[:, :2].sum()))
    with_ratio, without = (orpo(sums, lengths, totals, lambda_=weight)[0] for weight in (1.0, 0.0))
    (gradient,) = torch.autograd.grad(with_ratio - without, sums)
    factors = gradient_factors(mean_logps(sums.detach(), lengths))
    h_chosen, h_rejected = factors.chosen / lengths[:, 1], factors.rejected / lengths[:, 2]
    torch.testing.assert_close(gradient[:, 1], -factors.delta * h_chosen / 9, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(gradient[:, 2], factors.delta * h_rejected / 9, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped-query"])
def test_minus_delta_h_is_the_gradient_with_respect_to_weights(name: str) -> None:
    """Through a real model in float64: `-delta * (g_w / (1 - P_w) - g_l / (1 - P_l))` for every weight."""
    policy = PackedPolicy(build(FAMILIES[name], NAME, torch.float64))
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def mean_logps_of(example: int) -> Tensor:
        batch = pack([examples[example]], score_prompts=False)
        return mean_logps(policy(batch).view(1, 3), batch.lengths.view(1, 3))

    examples = random_examples(seed=3, prompts=3)
    for example in range(len(examples)):
        logps = mean_logps_of(example)
        g_w, g_l, expected = (
            torch.autograd.grad(scalar, weights, retain_graph=True)
            for scalar in (logps[0, 0], logps[0, 1], plain_odds_ratio_loss(logps).sum())
        )
        delta, w, l = (factor.item() for factor in gradient_factors(logps.detach()))  # noqa: E741
        scale = max(float(gradient.abs().max()) for gradient in expected)
        for chosen, rejected, gradient in zip(g_w, g_l, expected, strict=True):
            assert (-delta * (w * chosen - l * rejected) - gradient).abs().max() <= 1e-10 * scale


@given(
    chosen=st.sampled_from([0.0, -1e-30, -1e-12, -1e-7, -1.0, -1e3]),
    rejected=st.sampled_from([0.0, -1e-30, -1e-12, -1e-7, -1.0, -1e3]),
)
def test_finite_in_float32_at_certainty(chosen: float, rejected: float) -> None:
    factors = gradient_factors(torch.tensor([[chosen, rejected]]))
    assert all(torch.isfinite(factor).all() for factor in factors)
    assert 0 <= float(factors.delta) <= 1
    assert 1 <= float(factors.chosen) <= 1.001e12 and 1 <= float(factors.rejected) <= 1.001e12
    if chosen == rejected:
        assert float(factors.delta) == 0.5


def test_metrics_are_means_whose_shares_add_up() -> None:
    torch.manual_seed(2)
    lengths = torch.randint(1, 20, (10, 3))
    sums = (-2 * torch.rand(10, 3, dtype=torch.float64) * lengths).requires_grad_()
    totals = Totals(10, 1)
    whole = gradient_metrics(sums, lengths, totals)
    factors = gradient_factors(mean_logps(sums, lengths))
    assert set(whole) == {"gradient_delta", "gradient_weight_chosen", "gradient_weight_rejected"}
    assert not any(value.requires_grad for value in whole.values())
    for value, factor in zip(whole.values(), factors, strict=True):
        assert float(value) == pytest.approx(float(factor.detach().mean()), rel=1e-12)
    parts = [gradient_metrics(sums[cut], lengths[cut], totals) for cut in (slice(0, 1), slice(1, 6), slice(6, 10))]
    for name, value in whole.items():
        assert float(sum(part[name] for part in parts)) == pytest.approx(float(value), rel=1e-12), name
