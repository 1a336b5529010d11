"""The Bradley-Terry objective, and what is said of a reward model's margins afterwards."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_ray.objectives.reliability import accuracy, accuracy_by_length, calibration
from orpo_ray.objectives.reward import reward
from orpo_ray.objectives.terms import Totals

REWARD = st.floats(-1e4, 1e4, width=32)
ROWS = st.lists(st.tuples(st.just(0.0), REWARD, REWARD), min_size=1, max_size=8)


def test_value_and_metrics_by_hand() -> None:
    rewards = torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.0, 1.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    loss, metrics = reward(rewards, torch.ones(3, 3), Totals(3, 0))
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), math.log(2)]
    assert float(loss) == pytest.approx(sum(losses) / 3, rel=1e-14)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss": sum(losses) / 3,
            "rewards_chosen": 1.5 / 3,
            "rewards_rejected": 2.5 / 3,
            "reward_margin": -1 / 3,
            "reward_accuracy": 0.5,  # a win, a loss, and a tie that counts half
        }
    )


@given(rows=ROWS, cut=st.integers(0, 8))
@settings(deadline=None)
def test_finite_and_additive(rows: list[tuple[float, float, float]], cut: int) -> None:
    rewards = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    totals = Totals(len(rows), 0)
    loss, metrics = reward(rewards, torch.ones_like(rewards), totals)
    loss.backward()
    assert rewards.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(rewards.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not rewards.grad[:, 0].any()
    exact = rewards.detach().double()
    whole, metrics = reward(exact, torch.ones_like(exact), totals)
    parts = [reward(part, torch.ones_like(part), totals) for part in (exact[:cut], exact[cut:])]
    assert float(sum(share for share, _ in parts)) == pytest.approx(float(whole), rel=1e-12)
    for name, value in metrics.items():
        assert float(sum(part[name] for _, part in parts)) == pytest.approx(float(value), rel=1e-12, abs=1e-9), name


def test_gradient() -> None:
    torch.manual_seed(0)
    rewards = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.ones(5, 3)
    torch.autograd.gradcheck(lambda r: reward(r, lengths, Totals(5, 0))[0], rewards)
    reward(rewards, lengths, Totals(5, 0))[0].backward()
    assert rewards.grad is not None
    expected = -1 / (1 + (rewards[:, 1] - rewards[:, 2]).exp()) / 5  # -(1 - p(chosen wins)) / pairs
    torch.testing.assert_close(rewards.grad[:, 1], expected)
    torch.testing.assert_close(rewards.grad[:, 2], -expected)


def test_only_the_margin_matters() -> None:
    """A constant added to all rewards changes nothing: which is why they may be centred afterwards."""
    rewards = torch.randn(6, 3, dtype=torch.float64)
    lengths, totals = torch.ones(6, 3), Totals(6, 0)
    assert float(reward(rewards + 7, lengths, totals)[0]) == pytest.approx(float(reward(rewards, lengths, totals)[0]))


def test_accuracy_has_wilsons_interval() -> None:
    margins = np.r_[np.full(70, 0.3), np.full(28, -2.0), 0.0, 0.0]
    result = accuracy(margins)
    z, p, n = 1.959963984540054, 0.7, 100
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (result.pairs, result.correct, result.ties, result.accuracy) == (100, 70, 2, 0.7)
    assert result.ci95 == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))


def test_wilsons_interval_covers() -> None:
    rng = np.random.default_rng(0)
    intervals = [accuracy(np.where(rng.random(60) < 0.8, 1.0, -1.0)).ci95 for _ in range(400)]
    assert 0.92 <= np.mean([low <= 0.8 <= high for low, high in intervals]) <= 0.98


def test_calibration_by_hand() -> None:
    """Confidence 0.6 three times (two right) and 0.9 once (wrong)."""
    sixty, ninety = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    result = calibration([sixty, sixty, -sixty, -ninety], bins=2)
    low, high = result.bins
    assert (low.low, low.high, low.count) == (0.5, 0.75, 3)
    assert (high.low, high.high, high.count) == (0.75, 1.0, 1)
    assert (low.confidence, low.accuracy, high.confidence, high.accuracy) == pytest.approx((0.6, 2 / 3, 0.9, 0.0))
    assert result.expected_calibration_error == pytest.approx((3 * (2 / 3 - 0.6) + 0.9) / 4)


def test_calibration_of_a_calibrated_and_of_an_overconfident_model() -> None:
    rng = np.random.default_rng(0)
    true_margins = rng.normal(0, 2, 40_000)
    margins = np.where(rng.random(40_000) < 1 / (1 + np.exp(-true_margins)), true_margins, -true_margins)
    assert calibration(margins).expected_calibration_error < 0.01
    overconfident = calibration(5 * margins)
    assert overconfident.expected_calibration_error > 0.1
    assert all(b.confidence > b.accuracy for b in overconfident.bins)


@given(margins=st.lists(st.floats(-800, 800), min_size=1, max_size=50), bins=st.integers(1, 20))
def test_bins_hold_every_pair_once(margins: list[float], bins: int) -> None:
    result = calibration(margins, bins)
    assert sum(b.count for b in result.bins) == len(margins)
    assert 0 <= result.expected_calibration_error <= 1
    for b in result.bins:
        assert b.low - 1e-12 <= b.confidence <= b.high + 1e-12
    correct = sum(b.accuracy * b.count for b in result.bins)
    assert correct == pytest.approx(sum(margin > 0 for margin in margins))


def test_accuracy_by_length_finds_a_model_that_likes_long_answers() -> None:
    differences = np.arange(-50, 50)
    result = accuracy_by_length(margins=differences, length_differences=differences)
    assert [(g.shortest, g.longest, g.accuracy.pairs) for g in result.quintiles] == [
        (-50, -31, 20), (-30, -11, 20), (-10, 9, 20), (10, 29, 20), (30, 49, 20)
    ]  # fmt: skip
    assert [g.accuracy.accuracy for g in result.quintiles] == [0, 0, 0.45, 1, 1]
    assert result.chosen_longer is not None and result.chosen_shorter is not None
    assert (result.chosen_longer.accuracy, result.chosen_longer.pairs) == (1.0, 49)
    assert (result.chosen_shorter.accuracy, result.chosen_shorter.pairs) == (0.0, 50)


@given(differences=st.lists(st.integers(-5, 5), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_length_groups_hold_every_pair_once(differences: list[int], seed: int) -> None:
    margins = np.random.default_rng(seed).normal(size=len(differences))
    result = accuracy_by_length(margins, differences)
    groups = result.quintiles
    assert 1 <= len(groups) <= 5
    assert sum(g.accuracy.pairs for g in groups) == len(differences)
    assert all(a.longest < b.shortest for a, b in pairwise(groups))
    for group in groups:
        members = margins[[group.shortest <= d <= group.longest for d in differences]]
        assert group.accuracy.correct == (members > 0).sum()


def test_no_pair_of_a_class_and_plain_numbers_for_json() -> None:
    result = accuracy_by_length([1.0, -1.0], [0, 3])
    assert result.chosen_shorter is None
    text = json.dumps([dataclasses.asdict(x) for x in (result, calibration([1.0, 0.0]), accuracy([1.0]))])
    assert "NaN" not in text


@pytest.mark.parametrize("margins", [[], [math.nan], [1.0, math.inf], [[1.0]]])
def test_margins_must_be_numbers(margins: list[float]) -> None:
    for judge in (accuracy, calibration, lambda m: accuracy_by_length(m, [0] * len(m))):
        with pytest.raises(ValueError, match="margins must be"):
            judge(margins)
