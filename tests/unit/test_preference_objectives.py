"""DPO, IPO, KTO, SimPO, CPO, unlikelihood and the probability ratio against float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orpo_ray.objectives.cpo import cpo
from orpo_ray.objectives.dpo import dpo
from orpo_ray.objectives.ipo import ipo
from orpo_ray.objectives.kto import kto_pair
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.probability_ratio import probability_ratio
from orpo_ray.objectives.sft import sft
from orpo_ray.objectives.simpo import simpo
from orpo_ray.objectives.terms import Metrics, Totals
from orpo_ray.objectives.unlikelihood import unlikelihood


class Batch(NamedTuple):
    sums: Tensor
    lengths: Tensor
    reference: Tensor
    totals: Totals

    def cut(self, rows: slice) -> Batch:
        return Batch(self.sums[rows], self.lengths[rows], self.reference[rows], self.totals)


class Pair(NamedTuple):
    """One pair in plain floats: log-prob sums, lengths, log-prob sums under the reference."""

    w: float
    l: float  # noqa: E741
    len_w: int
    len_l: int
    ref_w: float
    ref_l: float


def batch(pairs: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (pairs, 3), generator=generator)
    per_token = 0.05 + 2 * torch.rand(pairs, 3, dtype=torch.float64, generator=generator)
    sums = -per_token * lengths
    reference = sums[:, 1:] + 3 * torch.randn(pairs, 2, dtype=torch.float64, generator=generator)
    totals = Totals(pairs, int(lengths[:, :2].sum()))
    return Batch(sums.to(dtype), lengths, reference.to(dtype), totals)


def naive_logistic_loss(x: float) -> float:
    return -math.log(1 / (1 + math.exp(-x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Settings are all different from one another and from 1, so that none can stand in for another.
OBJECTIVES: dict[str, Callable[[Batch], tuple[Tensor, Metrics]]] = {
    "dpo": lambda b: dpo(b.sums, b.lengths, b.totals, reference=b.reference, beta=0.3),
    "ipo": lambda b: ipo(b.sums, b.lengths, b.totals, reference=b.reference, tau=0.2),
    "kto_pair": lambda b: kto_pair(b.sums, b.lengths, b.totals, reference=b.reference, beta=0.3, baseline=0.7),
    "simpo": lambda b: simpo(b.sums, b.lengths, b.totals, beta=2.5, gamma=0.8),
    "cpo": lambda b: cpo(b.sums, b.lengths, b.totals, beta=0.3, lambda_=0.6),
    "unlikelihood": lambda b: unlikelihood(b.sums, b.lengths, b.totals, alpha=0.6),
    "probability_ratio": lambda b: probability_ratio(b.sums, b.lengths, b.totals, lambda_=0.6),
}
NEED_A_REFERENCE = ["dpo", "ipo", "kto_pair"]
# One pair's part of the loss, as the sources write it; the second number is the weight of the NLL per token.
FORMULAS: dict[str, tuple[Callable[[Pair], float], float]] = {
    "dpo": (lambda p: naive_logistic_loss(0.3 * ((p.w - p.ref_w) - (p.l - p.ref_l))), 0),
    "ipo": (lambda p: ((p.w - p.l) - (p.ref_w - p.ref_l) - 1 / 0.4) ** 2, 0),
    "kto_pair": (
        lambda p: ((1 - sigmoid(0.3 * (p.w - p.ref_w - 0.7))) + (1 - sigmoid(0.3 * (0.7 - (p.l - p.ref_l))))) / 2, 0,
    ),
    "simpo": (lambda p: naive_logistic_loss(2.5 / p.len_w * p.w - 2.5 / p.len_l * p.l - 0.8), 0),
    "cpo": (lambda p: naive_logistic_loss(0.3 * p.w - 0.3 * p.l), 0.6),
    "unlikelihood": (lambda p: -0.6 * math.log(1 - math.exp(p.l / p.len_l)), 1),
    "probability_ratio": (lambda p: 0.6 * math.log(1 + math.exp(p.l / p.len_l) / math.exp(p.w / p.len_w)), 1),
}  # fmt: skip
# Implicit rewards of chosen and rejected.
REWARDS: dict[str, Callable[[Pair], tuple[float, float]]] = {
    "dpo": lambda p: (0.3 * (p.w - p.ref_w), 0.3 * (p.l - p.ref_l)),
    "ipo": lambda p: (0.2 * (p.w - p.ref_w), 0.2 * (p.l - p.ref_l)),
    "kto_pair": lambda p: (0.3 * (p.w - p.ref_w), 0.3 * (p.l - p.ref_l)),
    "simpo": lambda p: (2.5 * p.w / p.len_w, 2.5 * p.l / p.len_l),
    "cpo": lambda p: (0.3 * p.w, 0.3 * p.l),
}


def plain(b: Batch) -> list[Pair]:
    rows = zip(b.sums.tolist(), b.lengths.tolist(), b.reference.tolist(), strict=True)
    return [Pair(w, l, len_w, len_l, ref_w, ref_l) for (_, w, l), (_, len_w, len_l), (ref_w, ref_l) in rows]  # noqa: E741


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_equals_its_formula(name: str, seed: int) -> None:
    b = batch(seed=seed)
    formula, nll_weight = FORMULAS[name]
    nll = -float(b.sums[:, :2].sum()) / float(b.lengths[:, :2].sum())
    loss, metrics = OBJECTIVES[name](b)
    assert float(loss) == pytest.approx(mean([formula(pair) for pair in plain(b)]) + nll_weight * nll, rel=1e-12)
    assert float(metrics["loss"]) == float(loss)
    assert float(metrics["nll"]) == pytest.approx(nll, rel=1e-12)
    assert float(metrics["logps_chosen"]) == pytest.approx(mean([p.w / p.len_w for p in plain(b)]), rel=1e-12)
    assert float(metrics["logps_rejected"]) == pytest.approx(mean([p.l / p.len_l for p in plain(b)]), rel=1e-12)


@pytest.mark.parametrize("name", REWARDS)
def test_metrics_are_of_the_implicit_rewards(name: str) -> None:
    b = batch(pairs=12, seed=4)
    rewards = [REWARDS[name](pair) for pair in plain(b)]
    _, metrics = OBJECTIVES[name](b)
    wins = [float(w > l) for w, l in rewards]  # noqa: E741
    assert 0 < mean(wins) < 1
    assert float(metrics["rewards_chosen"]) == pytest.approx(mean([w for w, _ in rewards]), rel=1e-12)
    assert float(metrics["rewards_rejected"]) == pytest.approx(mean([l for _, l in rewards]), rel=1e-12)  # noqa: E741
    assert float(metrics["reward_margin"]) == pytest.approx(mean([w - l for w, l in rewards]), rel=1e-12)  # noqa: E741
    assert float(metrics["reward_accuracy"]) == pytest.approx(mean(wins))


@pytest.mark.parametrize("name", NEED_A_REFERENCE)
def test_kl_is_the_chosen_log_ratio_per_token(name: str) -> None:
    b = batch(seed=5)
    expected = mean([(p.w - p.ref_w) / p.len_w for p in plain(b)])
    assert float(OBJECTIVES[name](b)[1]["kl"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_equals_finite_differences(name: str) -> None:
    b = batch(pairs=4, seed=2)
    torch.autograd.gradcheck(lambda sums: OBJECTIVES[name](b._replace(sums=sums))[0], b.sums.requires_grad_())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_carry_no_graph(name: str) -> None:
    b = batch()
    loss, metrics = OBJECTIVES[name](b._replace(sums=b.sums.requires_grad_()))
    assert loss.requires_grad and loss.shape == ()
    assert not any(value.requires_grad or value.shape for value in metrics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10_000), pairs=st.integers(1, 9), data=st.data())
@settings(max_examples=25, deadline=None)
def test_shares_of_micro_batches_add_up_to_the_whole(name: str, seed: int, pairs: int, data: st.DataObject) -> None:
    b = batch(pairs, seed)
    inner = data.draw(st.lists(st.integers(1, pairs), max_size=3, unique=True))
    edges = [0, *sorted(inner), pairs]
    whole, metrics = OBJECTIVES[name](b)
    parts = [OBJECTIVES[name](b.cut(slice(*cut))) for cut in pairwise(edges)]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-12, abs=1e-13)
    for key, value in metrics.items():
        # `preference_metrics` counts wins in float32.
        tolerance = 1e-6 if key == "reward_accuracy" else 1e-11
        assert float(sum(part[key] for _, part in parts)) == pytest.approx(float(value), rel=1e-9, abs=tolerance), key


# Mean log-probs per token, from certainty to a token that the model all but excludes.
EXTREMES = st.one_of(st.floats(-100, 0), st.sampled_from([0.0, -1e-30, -1e-12, -1e-8, -1e-4, -math.log(2), -100.0]))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(logps=st.tuples(EXTREMES, EXTREMES, EXTREMES, EXTREMES), lengths=st.tuples(*[st.integers(1, 4096)] * 2))
@settings(max_examples=60, deadline=None)
def test_everything_is_finite_in_float32(
    name: str, logps: tuple[float, float, float, float], lengths: tuple[int, int]
) -> None:
    (w, l, ref_w, ref_l), (len_w, len_l) = logps, lengths  # noqa: E741
    sums = torch.tensor([[-3.0, w * len_w, l * len_l]], requires_grad=True)
    b = Batch(
        sums, torch.tensor([[4, len_w, len_l]]), torch.tensor([[ref_w * len_w, ref_l * len_l]]), Totals(1, 4 + len_w)
    )
    loss, metrics = OBJECTIVES[name](b)
    loss.backward()
    assert sums.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(sums.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values()), metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_raises_chosen_and_lowers_rejected(name: str) -> None:
    """A step against the gradient at a pair that the model has not told apart yet."""
    sums = torch.tensor([[-3.0, -8.0, -8.0]], dtype=torch.float64, requires_grad=True)
    b = Batch(sums, torch.tensor([[4, 8, 8]]), torch.tensor([[-8.0, -8.0]]), Totals(1, 12))
    OBJECTIVES[name](b)[0].backward()
    assert sums.grad is not None
    assert sums.grad[0, 1] < 0 < sums.grad[0, 2]


def test_float32_is_close_to_float64() -> None:
    for name, objective in OBJECTIVES.items():
        exact, single = (float(objective(batch(64, dtype=dtype))[0]) for dtype in (torch.float64, torch.float32))
        assert single == pytest.approx(exact, rel=2e-6), name


def test_dpo_starts_at_log_2_with_nothing_learnt() -> None:
    b = batch()
    loss, metrics = dpo(b.sums, b.lengths, b.totals, reference=b.sums[:, 1:], beta=0.1)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-15)
    assert float(metrics["reward_accuracy"]) == 0.5  # ties count half
    for name in ("rewards_chosen", "rewards_rejected", "reward_margin", "kl"):
        assert float(metrics[name]) == 0, name


def test_dpo_by_hand_is_on_sums() -> None:
    """Two pairs of margins +2 and -1 nat whose lengths differ: lengths must not enter the loss."""
    sums = torch.tensor([[0.0, -10.0, -20.0], [0.0, -5.0, -5.0]], dtype=torch.float64)
    reference = torch.tensor([[-11.0, -19.0], [-5.0, -6.0]], dtype=torch.float64)
    lengths = torch.tensor([[0, 4, 9], [0, 3, 1]])
    loss, metrics = dpo(sums, lengths, Totals(2, 7), reference=reference, beta=0.5)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-14)
    assert float(metrics["reward_margin"]) == pytest.approx(0.25)
    assert float(metrics["reward_accuracy"]) == 0.5
    assert float(metrics["kl"]) == pytest.approx((1 / 4 + 0 / 3) / 2)


def test_ipo_is_least_at_its_target_margin() -> None:
    sums = torch.tensor([[0.0, -10.0, -20.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-10.0, -10.0]], dtype=torch.float64)  # margin 10 = 1 / (2 * 0.05)
    loss, metrics = ipo(sums, torch.tensor([[0, 3, 5]]), Totals(1, 3), reference=reference, tau=0.05)
    loss.backward()
    assert sums.grad is not None
    assert float(loss.detach()) == 0 and not sums.grad.any()
    assert float(metrics["reward_margin"]) == pytest.approx(0.5)


def test_kto_without_a_baseline_is_half_of_apo_zero() -> None:
    b = batch()
    loss, _ = kto_pair(b.sums, b.lengths, b.totals, reference=b.reference, beta=0.3, baseline=0.0)
    ratios = b.sums[:, 1:] - b.reference
    apo_zero = 1 - torch.sigmoid(0.3 * ratios[:, 0]) + torch.sigmoid(0.3 * ratios[:, 1])
    assert float(loss) == pytest.approx(float(apo_zero.mean()) / 2, rel=1e-12)


def test_kto_baseline_moves_where_the_gradient_is_largest() -> None:
    """The gradient of chosen peaks where its log-ratio is the baseline, whatever else the batch holds."""
    ratios = torch.linspace(-10, 20, 301, dtype=torch.float64)
    sums = torch.stack([torch.zeros(301), ratios - 50, torch.full((301,), -50.0)], dim=1).double().requires_grad_()
    lengths, reference = torch.full((301, 3), 30), torch.full((301, 2), -50.0, dtype=torch.float64)
    kto_pair(sums, lengths, Totals(301, 1), reference=reference, beta=0.5, baseline=4.0)[0].backward()
    assert sums.grad is not None
    assert float(ratios[sums.grad[:, 1].argmin()]) == pytest.approx(4.0)


def test_cpo_is_dpo_with_a_uniform_reference_and_an_nll() -> None:
    b = batch()
    uniform = torch.full_like(b.reference, -12.0)
    contrast, _ = dpo(b.sums, b.lengths, b.totals, reference=uniform, beta=0.3)
    loss, metrics = cpo(b.sums, b.lengths, b.totals, beta=0.3, lambda_=0.6)
    assert float(metrics["preference_loss"]) == pytest.approx(float(contrast), rel=1e-12)
    assert float(loss) == pytest.approx(float(contrast + 0.6 * metrics["nll"]), rel=1e-12)


@pytest.mark.parametrize(
    "objective",
    [lambda b: unlikelihood(b.sums, b.lengths, b.totals, alpha=0.0),
     lambda b: probability_ratio(b.sums, b.lengths, b.totals, lambda_=0.0)],
)  # fmt: skip
def test_without_its_penalty_each_is_sft(objective: Callable[[Batch], tuple[Tensor, Metrics]]) -> None:
    b = batch()
    assert torch.equal(objective(b)[0], sft(b.sums, b.lengths, b.totals)[0])


def test_probability_ratio_differs_from_orpo_by_the_odds_alone() -> None:
    """Where probabilities are small, odds are probabilities and the two losses meet."""
    b = batch()
    rare = b._replace(sums=b.sums - 30.0 * b.lengths)
    ratio, metrics = probability_ratio(rare.sums, rare.lengths, rare.totals, lambda_=0.6)
    odds, orpo_metrics = orpo(rare.sums, rare.lengths, rare.totals, lambda_=0.6)
    assert float(ratio) == pytest.approx(float(odds), rel=1e-12)
    assert float(metrics["log_probability_ratio"]) == pytest.approx(float(orpo_metrics["log_odds_ratio"]), rel=1e-12)
    likely_ratio, _ = probability_ratio(b.sums, b.lengths, b.totals, lambda_=0.6)
    assert abs(float(likely_ratio - orpo(b.sums, b.lengths, b.totals, lambda_=0.6)[0])) > 1e-3


@given(logp=st.one_of(st.floats(-60, -1e-10), st.sampled_from([-1e-10, -1e-8, -1e-4, -math.log(2), -60.0])))
def test_unlikelihood_is_accurate_near_certainty_in_float32(logp: float) -> None:
    sums = torch.tensor([[0.0, -1.0, logp]], requires_grad=True)
    loss, metrics = unlikelihood(sums, torch.tensor([[0, 1, 1]]), Totals(1, 1), alpha=1.0)
    loss.backward()
    x = float(sums.detach()[0, 2])
    expected = -math.log(-math.expm1(x)) if x > -0.7 else -math.log1p(-math.exp(x))
    # Log odds carry float32's relative rounding, so e^(log odds) an error of |log odds| * 1e-7.
    assert float(metrics["unlikelihood_loss"]) == pytest.approx(expected, rel=1e-5)
    assert sums.grad is not None
    assert float(sums.grad[0, 2]) == pytest.approx(1 / math.expm1(-x), rel=1e-5)
