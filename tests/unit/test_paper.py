"""What docs/paper.md says of the paper: each row shown here or by the test that it names."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from documented import ROOT
from test_docs_bugs import test_a_test_that_is_named_is_there as require_named

from orpo_ray.costs.device import Gpus, Shape
from orpo_ray.costs.step import Load, Network
from orpo_ray.objectives import sampled_ratios
from orpo_ray.objectives.gradient_analysis import gradient_factors
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.registry import build_objective
from orpo_ray.objectives.terms import Totals, log_odds
from orpo_ray.paper.published import DIVERSITY
from orpo_ray.statistics.diversity import mean_pairwise_cosine

PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::([\w:]+)`", PAGE)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_the_page_names_is_there(path: str, name: str) -> None:
    require_named(path, name)


def test_every_row_names_a_test() -> None:
    section = PAGE.partition("## Where it does not agree with itself")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 6 and all("::" in row for row in rows)


def test_the_weight_of_a_gradient_grows_with_its_probability() -> None:
    probabilities = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    weights = gradient_factors(torch.stack([probabilities.log(), probabilities.log()], dim=1)).chosen
    torch.testing.assert_close(weights, 1 / (1 - probabilities))
    assert (weights.diff() > 0).all()


def test_a_quarter_of_a_mean_has_not_the_cosines_of_table_4() -> None:
    """The largest mean, of answers that are all the same, is 1, and a quarter of it is below each of the table's."""
    alike = mean_pairwise_cosine(np.array([[0.6, 0.8]] * 5))
    assert alike == pytest.approx(1)
    assert all(alike / 4 < row.per_input <= alike for row in DIVERSITY)


def test_a_mean_over_padding_makes_lambda_larger() -> None:
    """With 3 of 5 positions real, the loss of a mean over all five is 3/5 of ours with 5/3 of its lambda."""
    sums = torch.tensor([[-4.0, -6.0, -9.0]], dtype=torch.float64)
    lengths, real, padded = torch.tensor([[2, 4, 6]]), 6, 10

    def loss(lambda_: float, positions: int) -> float:
        return float(orpo(sums, lengths, Totals(1, positions), lambda_=lambda_)[0])

    assert loss(0.5, padded) == pytest.approx(real / padded * loss(0.5 * padded / real, real))
    assert loss(0.5, padded) != pytest.approx(real / padded * loss(0.5, real))


def test_log_odds_near_certainty() -> None:
    x = torch.tensor(-1e-8)
    assert torch.isneginf(torch.log(1 - torch.exp(x))) and torch.isneginf(torch.log1p(-torch.exp(x)))
    assert float(torch.log(-torch.expm1(x))) == pytest.approx(-18.42, abs=0.01)
    certain = torch.tensor([-1e-8, 0.0], requires_grad=True)
    odds = log_odds(certain)
    odds.sum().backward()  # type: ignore[no-untyped-call]
    assert float(odds.detach()[0]) == pytest.approx(18.42, abs=0.01) and torch.isfinite(odds).all()
    assert certain.grad is not None and torch.isfinite(certain.grad).all()


def test_forwards_and_backwards_of_a_pair() -> None:
    """What the cost model says of a step without a reference, as ORPO's, and with one that is asked at each step."""
    from orpo_ray.config import parse_config

    def needs_reference(objective: dict[str, object]) -> bool:
        mapping = {"name": "x", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}, "objective": objective}
        return build_objective(parse_config(mapping, [], "x").objective).needs_reference

    assert not needs_reference({"name": "orpo", "lambda": 0.1}) and needs_reference({"name": "dpo"})
    net = Network(1_315_758_080, 24, 2048, 50_272, per_token=7.2e9, per_prediction=6.2e8, per_visible_pair=5.9e5)
    load, device, shape = Load.of(np.array([[126, 59, 59]] * 64), score_prompts=False), Gpus(), Shape(1)
    step, reference = shape.flops(net, load), device.rate * device.forward(net, load, shape)
    assert step / (step + reference) == pytest.approx(0.75)
    epochs = 3  # of a reference that is kept
    assert epochs * step / (epochs * step + reference) == pytest.approx(0.9)


def test_figure_6() -> None:
    found = sampled_ratios.sampled_ratios()
    assert found.probability.shape == found.odds.shape == (50_000,)
    for ratios, sd, beyond in (
        (found.probability, sampled_ratios.PROBABILITY_SD, sampled_ratios.probability_beyond),
        (found.odds, sampled_ratios.ODDS_SD, sampled_ratios.odds_beyond),
    ):
        assert ratios.std() == pytest.approx(sd, rel=0.02) and abs(ratios.mean()) < 4 * sd / math.sqrt(50_000)
        for nats in (1.0, 3.0, 5.0):
            share = np.mean(np.abs(ratios) > nats)
            error = math.sqrt(beyond(nats) * (1 - beyond(nats)) / 50_000)
            assert abs(share - beyond(nats)) < 4 * error
    # The numbers that the page states.
    assert [round(float(each.std()), 2) for each in found] == [1.41, 2.57]
    assert [round(100 * float(np.mean(np.abs(each) > 5)), 2) for each in found] == [0.63, 5.53]


def test_beta_scales_the_probability_ratio_alone() -> None:
    plain, scaled = sampled_ratios.sampled_ratios(), sampled_ratios.sampled_ratios(beta=0.1)
    np.testing.assert_allclose(scaled.probability, 0.1 * plain.probability)
    np.testing.assert_array_equal(scaled.odds, plain.odds)
