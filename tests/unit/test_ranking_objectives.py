"""The likelihood of whole rankings, and KTO, against their papers' formulas in plain floats."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orpo_ray.data.comparisons import compared, dense_ranks
from orpo_ray.objectives.kto import kto
from orpo_ray.objectives.reward import plackett_luce, reward
from orpo_ray.objectives.terms import Totals


def ranking_loss(rewards: list[list[float]], ranks: list[list[int]]) -> tuple[float, Tensor]:
    """Of several prompts: the loss, and its gradient by each reward of a real response."""
    width = max(map(len, ranks))
    table = torch.tensor([row + [0.0] * (width - len(row)) for row in rewards], dtype=torch.float64, requires_grad=True)
    found = compared(np.array([row + [-1] * (width - len(row)) for row in ranks]), "every_pair")
    better, worse = (table[found.records, found.responses[:, i]] for i in (0, 1))
    rows = torch.stack([torch.zeros_like(better), better, worse], dim=1)
    totals = Totals(len(rows), 0, records=len(ranks))
    loss, metrics = plackett_luce(rows, torch.ones(len(rows), 3), totals, choices=torch.from_numpy(found.choices))
    loss.backward()
    assert float(metrics["loss"]) == float(loss.detach()) and table.grad is not None
    return float(loss.detach()), table.grad


def likelihood(rewards: list[float]) -> float:
    """Of this order (DPO's paper, Eq. 18)."""
    return math.prod(math.exp(r) / sum(map(math.exp, rewards[k:])) for k, r in enumerate(rewards))


numbers = st.floats(-6, 6)
lists = st.lists(st.lists(numbers, min_size=2, max_size=6), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(lists)
def test_without_ties_it_is_plackett_luce(rewards: list[list[float]]) -> None:
    loss, gradient = ranking_loss(rewards, [list(range(len(row))) for row in rewards])
    assert loss == pytest.approx(-sum(math.log(likelihood(row)) for row in rewards) / len(rewards), abs=1e-9)
    assert gradient.sum(dim=1).abs().max() < 1e-12, "a constant added to a prompt's rewards changes nothing"


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=5), st.integers(1, 4))
def test_ties_at_the_end_are_summed_over_their_orders(rewards: list[float], tied: int) -> None:
    first = max(1, len(rewards) - tied)
    head, tail = rewards[:first], rewards[first:]
    exact = sum(likelihood([*head, *order]) for order in permutations(tail))
    loss, _ = ranking_loss([rewards], [[min(i, first) for i in range(len(rewards))]])
    assert loss == pytest.approx(-math.log(exact), abs=1e-9)


def test_ties_above_others_are_each_chosen_before_those() -> None:
    a, b, c = 0.3, -1.2, 0.8
    loss, _ = ranking_loss([[a, b, c]], [[0, 0, 1]])
    assert loss == pytest.approx(math.log(1 + math.exp(c - a)) + math.log(1 + math.exp(c - b)), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=5))
def test_of_two_responses_it_is_bradley_terry(rewards: list[list[float]]) -> None:
    rows = torch.tensor([[0.0, *row] for row in rewards], dtype=torch.float64)
    expected = reward(rows, torch.ones(len(rows), 3), Totals(len(rows), 0))[0]
    assert ranking_loss(rewards, [[0, 1]] * len(rewards))[0] == pytest.approx(float(expected), abs=1e-12)


def test_far_rewards_stay_finite() -> None:
    loss, gradient = ranking_loss([[-2000.0, 1000.0, 0.0], [2000.0, -1000.0, 0.0]], [[0, 1, 2], [0, 1, 2]])
    assert loss == pytest.approx((3000 + 0 + 0 + 1000) / 2) and gradient.isfinite().all()


def test_dense_ranks() -> None:
    assert dense_ranks([5.0, 5.0, 3.0, -1.0, -1.0]) == (0, 0, 1, 2, 2) and dense_ranks([]) == ()


KTO = {"beta": 0.3, "desirable_weight": 1.4, "undesirable_weight": 0.7}


def labelled(seed: int = 0, responses: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (responses, 2), generator=generator)
    sums = -torch.rand(responses, 2, dtype=torch.float64, generator=generator) * lengths
    reference = sums[:, 1:] + 3 * torch.randn(responses, 1, dtype=torch.float64, generator=generator)
    return sums, lengths, reference, torch.rand(responses, generator=generator) < 0.5


@pytest.mark.parametrize("point", [0.0, 0.9])
def test_kto_is_its_papers_formula(point: float) -> None:
    sums, lengths, reference, desirable = labelled()
    totals, baseline = Totals(9, 1, 9, int(desirable.sum())), torch.tensor(point, dtype=torch.float64)
    given = {"reference": reference, "desirable": desirable, "baseline": baseline, **KTO}
    loss, metrics = kto(sums, lengths, totals, **given)
    losses, rewards, right = [], [], []
    for (_, s), (known,), wanted in zip(sums.tolist(), reference.tolist(), desirable.tolist(), strict=True):
        gain = 0.3 * (s - known - point) * (1 if wanted else -1)
        weight = 1.4 if wanted else 0.7
        losses.append(weight - weight / (1 + math.exp(-gain)))  # lambda - v(x, y)
        rewards.append(0.3 * (s - known))
        right.append(gain > 0)
    assert float(loss) == pytest.approx(sum(losses) / 9, abs=1e-12)
    assert float(metrics["reward_accuracy"]) == pytest.approx(sum(right) / 9)
    assert float(metrics["reference_point"]) == pytest.approx(point)
    for name, side in (("chosen", True), ("rejected", False)):
        of_side = [r for r, wanted in zip(rewards, desirable.tolist(), strict=True) if wanted == side]
        assert float(metrics[f"rewards_{name}"]) == pytest.approx(sum(of_side) / len(of_side))
        logps = (sums[:, 1] / lengths[:, 1])[desirable == side].mean()
        assert float(metrics[f"logps_{name}"]) == pytest.approx(float(logps))
    torch.autograd.gradcheck(lambda s: kto(s, lengths, totals, **given)[0], sums.requires_grad_())


def test_shares_of_kto_add_up() -> None:
    sums, lengths, reference, desirable = labelled()
    totals, baseline = Totals(9, 1, 9, int(desirable.sum())), torch.tensor(0.4)

    def share(rows: slice) -> dict[str, float]:
        given = {"reference": reference[rows], "desirable": desirable[rows], "baseline": baseline, **KTO}
        return {name: float(value) for name, value in kto(sums[rows], lengths[rows], totals, **given)[1].items()}

    parts = [share(rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 9))]
    whole = share(slice(0, 9))
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)


def test_labels_that_a_step_lacks_have_no_mean() -> None:
    sums, lengths, reference, _ = labelled()
    desirable = torch.ones(9, dtype=torch.bool)
    given = {"reference": reference, "desirable": desirable, "baseline": torch.tensor(0.0), **KTO}
    metrics = kto(sums, lengths, Totals(9, 1, 9, 9), **given)[1]
    assert math.isnan(metrics["rewards_rejected"]) and math.isnan(metrics["reward_margin"])
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["rewards_chosen"])
