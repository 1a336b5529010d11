"""Objectives against float64 references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.config import OrpoConfig, SftConfig
from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.registry import build_objective
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.terms import Totals, log_odds

LOGPS = st.one_of(st.floats(-50, -1e-12), st.sampled_from([-1e-12, -1e-10, -1e-8, -1e-4, -math.log(2), -50.0]))


def reference_log_odds(logp: float) -> tuple[float, float]:
    """Value and derivative in float64, by the one form that is accurate everywhere."""
    return logp - (math.log(-math.expm1(logp)) if logp > -0.7 else math.log1p(-math.exp(logp))), -1 / math.expm1(logp)


@given(logp=LOGPS)
def test_log_odds_value_and_gradient(logp: float) -> None:
    x = torch.tensor(logp, dtype=torch.float32, requires_grad=True)
    value = log_odds(x)
    value.backward()
    expected, slope = reference_log_odds(float(x.detach()))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert float(x.grad) == pytest.approx(slope, rel=1e-5)


@given(chosen=LOGPS, rejected=LOGPS, lambda_=st.floats(0, 3))
def test_orpo_value_and_gradient_against_float64(chosen: float, rejected: float, lambda_: float) -> None:
    sums = torch.tensor([[-3.0, chosen, rejected]], dtype=torch.float32, requires_grad=True)
    loss, metrics = orpo(sums, torch.tensor([[4, 1, 1]]), Totals(pairs=1, nll_tokens=5), lambda_=lambda_)
    loss.backward()
    _, chosen32, rejected32 = sums.detach().double()[0].tolist()
    (odds_w, slope_w), (odds_l, slope_l) = reference_log_odds(chosen32), reference_log_odds(rejected32)
    difference = odds_w - odds_l
    expected = (3.0 - chosen32) / 5 + lambda_ * float(np.logaddexp(0, -difference))
    delta = float(np.exp(-np.logaddexp(0, difference)))  # 1 / (1 + odds ratio), Eq. 9
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert sums.grad is not None
    gradient = sums.grad[0].double().tolist()
    # exp(-difference) turns the float32 rounding of the log-odds (|27.6| * 6e-8) into a relative error.
    assert gradient[0] == pytest.approx(-1 / 5, rel=1e-6)
    assert gradient[1] == pytest.approx(-1 / 5 - lambda_ * delta * slope_w, rel=3e-5, abs=1e-6)
    assert gradient[2] == pytest.approx(lambda_ * delta * slope_l, rel=3e-5, abs=1e-6)
    assert float(metrics["log_odds_ratio"]) == pytest.approx(difference, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("chosen", [-50.0, -1.0, -1e-12, 0.0])
@pytest.mark.parametrize("rejected", [-50.0, -1.0, -1e-12, 0.0])
def test_orpo_is_finite_at_certainty(chosen: float, rejected: float) -> None:
    sums = torch.tensor([[-3.0, chosen, rejected]], requires_grad=True)
    loss, metrics = orpo(sums, torch.tensor([[4, 1, 1]]), Totals(1, 5), lambda_=1.0)
    loss.backward()
    assert sums.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(sums.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


def test_shares_of_micro_batches_add_up_to_the_whole() -> None:
    """Unequal micro-batches, lengths and prompts: the loss is never a mean of means."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 40, (10, 3))
    sums = -torch.rand(10, 3, dtype=torch.float64) * lengths
    totals = Totals(10, int(lengths[:, :2].sum()))
    whole, metrics = orpo(sums, lengths, totals, lambda_=0.3)
    parts = [orpo(sums[cut], lengths[cut], totals, lambda_=0.3) for cut in (slice(0, 1), slice(1, 4), slice(4, 10))]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-12)
    for name, value in metrics.items():
        assert float(sum(part[name] for _, part in parts)) == pytest.approx(float(value), rel=1e-12), name


def test_metrics_are_the_papers_quantities() -> None:
    sums, lengths = torch.tensor([[-2.0, -2.0, -6.0], [-1.0, -3.0, -1.0]]), torch.tensor([[2, 2, 3], [1, 3, 1]])
    _, metrics = orpo(sums, lengths, Totals(2, 8), lambda_=1.0)
    assert float(metrics["logps_chosen"]) == pytest.approx(-1.0)
    assert float(metrics["logps_rejected"]) == pytest.approx(-1.5)
    assert float(metrics["reward_accuracy"]) == pytest.approx(0.75)  # a win and a tie
    assert float(metrics["nll"]) == pytest.approx(1.0)


def test_lambda_zero_is_sft() -> None:
    sums, lengths = -torch.rand(4, 3) * 9, torch.full((4, 3), 9)
    totals = Totals(4, 72)
    assert torch.equal(orpo(sums, lengths, totals, lambda_=0.0)[0], sft(sums, lengths, totals)[0])


def test_sft_trains_without_a_rejected_response_and_measures_one_when_given() -> None:
    sums, lengths = -torch.rand(4, 3) * 9, torch.full((4, 3), 9)
    loss, metrics = sft(sums[:, :2], lengths[:, :2], Totals(4, 72))
    loss_with_rejected, all_metrics = sft(sums, lengths, Totals(4, 72))
    assert torch.equal(loss, loss_with_rejected)
    assert set(metrics) == {"loss", "nll", "logps_chosen"}
    assert {"logps_rejected", "log_odds_ratio", "reward_accuracy"} <= set(all_metrics)


def test_registry_follows_the_configuration() -> None:
    objective = build_objective(OrpoConfig(lambda_=0.7, nll_tokens="chosen"))
    assert (objective.best_alone, objective.score_prompts) == (False, False)
    sums, lengths = -torch.rand(2, 3), torch.ones(2, 3)
    expected = orpo(sums, lengths, Totals(2, 2), lambda_=0.7)[0]
    assert torch.equal(objective.loss(sums, lengths, Totals(2, 2))[0], expected)
    assert build_objective(SftConfig()).best_alone


def named(config: type) -> str:
    return str(config.model_fields["name"].default)


@pytest.mark.parametrize("config", [each for each in OBJECTIVES if not each.by_token], ids=named)
def test_every_objective_of_rows_runs_through_the_registry(config: type) -> None:
    objective = build_objective(config())
    columns = 2 if objective.judges_labels else 3
    sums, lengths = -torch.rand(2, columns) * 5, torch.full((2, columns), 5)
    loss, metrics = objective.loss(
        sums.requires_grad_(), lengths, Totals(2, 20, records=2, desirable=1),
        {
            "reference": -torch.rand(2, columns - 1) * 5, "choices": torch.ones(2, dtype=torch.int64),
            "desirable": torch.tensor([True, False]), "baseline": torch.tensor(0.5),
        },
    )  # fmt: skip
    loss.backward()
    assert sums.grad is not None
    assert sums.grad[:, 1].abs().sum() > 0
    assert float(metrics["loss"]) == float(loss.detach())
    assert (objective.model == "reward") == (config.model_fields["name"].default == "reward")


@pytest.mark.parametrize("config", [each for each in OBJECTIVES if each.by_token], ids=named)
def test_every_objective_of_tokens_runs_through_the_registry(config: type) -> None:
    objective = build_objective(config())
    responses, columns = torch.tensor([3, 1, 4]), {name: -torch.rand(8) for name in objective.settings.columns}
    scored = -torch.rand(8, 2) if objective.settings.has_critic else -torch.rand(8)
    loss, metrics = objective.loss_of_tokens(scored.requires_grad_(), responses, Totals(3, 8, records=3), columns)
    loss.backward()
    assert scored.grad is not None
    assert scored.grad.shape == scored.shape and scored.grad.abs().sum(dim=0).min() > 0
    assert float(metrics["loss"]) == float(loss.detach())
    known = {"loss", "policy_loss", "clip_fraction", "ratio", "approx_kl"}
    critics = {"value_loss", "value_clip_fraction"} if objective.settings.has_critic else set()
    assert {*metrics} == known | critics


def test_gradient_factors_are_logged_on_demand() -> None:
    sums, lengths = -torch.rand(2, 3) * 5, torch.full((2, 3), 5)
    plain = build_objective(OrpoConfig()).loss(sums, lengths, Totals(2, 20))
    told = build_objective(OrpoConfig(gradient_metrics=True)).loss(sums, lengths, Totals(2, 20))
    assert torch.equal(plain[0], told[0])
    added = {"gradient_delta", "gradient_weight_chosen", "gradient_weight_rejected"}
    assert set(told[1]) - set(plain[1]) == added
