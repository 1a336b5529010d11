"""PPO, RLOO and GRPO against dense, padded float64 references."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orpo_ray.config.objectives import (
    OBJECTIVES,
    DpoConfig,
    GrpoConfig,
    OnlineConfig,
    OrpoConfig,
    PolicyGradientSection,
    PpoConfig,
    RlooConfig,
)
from orpo_ray.objectives.advantages import importance
from orpo_ray.objectives.registry import build_objective
from orpo_ray.objectives.terms import Metrics, Totals

# Coefficients are all different from one another and from the defaults, so that none can stand in for another.
CASES: dict[str, PolicyGradientSection] = {
    "ppo": PpoConfig(clip=0.15, value_clip=0.25, value_weight=0.35),
    "ppo-values-unclipped": PpoConfig(clip=0.15, value_clip=None, value_weight=0.35),
    "rloo": RlooConfig(clip=0.45),
    "grpo": GrpoConfig(clip=0.15, token_mean="response"),
    "grpo-batch": GrpoConfig(clip=0.15, token_mean="batch"),
}
PADDING = 77.0


class Step(NamedTuple):
    """A step's rollouts, flat."""

    scored: Tensor
    """(tokens, 2): of the policy and of the critic."""
    lengths: Tensor
    totals: Totals
    columns: dict[Any, Tensor]

    def samples(self, start: int, end: int) -> Step:
        """The micro-batch of some of the samples, with the totals of the step."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:end].sum())
        columns = {name: column[first:last] for name, column in self.columns.items()}
        return Step(self.scored[first:last], self.lengths[start:end], self.totals, columns)

    def padded(self, values: Tensor) -> Tensor:
        """(samples, longest) of (tokens,): behind the end of a sample stands what would be noticed."""
        return torch.nn.utils.rnn.pad_sequence(
            list(values.split(self.lengths.tolist())), batch_first=True, padding_value=PADDING
        )


def step(seed: int = 0, samples: int = 6, longest: int = 9, dtype: torch.dtype = torch.float64) -> Step:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (samples,), generator=generator)
    tokens = int(lengths.sum())

    def normal(size: int, scale: float) -> Tensor:
        return scale * torch.randn(size, dtype=torch.float64, generator=generator)

    logps, values = -3 * torch.rand(tokens, dtype=torch.float64, generator=generator), normal(tokens, 1)
    columns = {
        "old_logps": logps + normal(tokens, 0.25), "advantages": normal(samples, 1).repeat_interleave(lengths),
        "importance": (0.4 * normal(samples, 1)).exp().repeat_interleave(lengths),
        "old_values": values + normal(tokens, 0.4), "returns": values + normal(tokens, 1),
    }  # fmt: skip
    return Step(
        torch.stack([logps, values], dim=1).to(dtype), lengths, Totals(samples, tokens, records=samples // 2),
        {name: column.to(dtype) for name, column in columns.items()},
    )  # fmt: skip


def by_token(s: Step, seed: int = 1) -> Step:
    """With advantages and weights that differ from token to token, as PPO's do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, len(s.scored), dtype=s.scored.dtype, generator=generator)
    return s._replace(columns={**s.columns, "advantages": noise[0], "importance": (0.3 * noise[1]).exp()})


def loss_of(config: PolicyGradientSection, s: Step) -> tuple[Tensor, Metrics]:
    scored = s.scored if config.has_critic else s.scored[:, 0]
    return build_objective(config).loss_of_tokens(scored, s.lengths, s.totals, s.columns)


def dense(config: PolicyGradientSection, s: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics from padded tables and masks, as the formulas are written."""
    logps, values = s.padded(s.scored[:, 0]), s.padded(s.scored[:, 1])
    c = {name: s.padded(column) for name, column in s.columns.items()}
    mask = (torch.arange(logps.shape[1])[None] < s.lengths[:, None]).to(torch.float64)

    def over_tokens(table: Tensor) -> Tensor:
        return (table * mask).sum() / mask.sum()

    log_ratio = (logps - c["old_logps"]) * mask
    told = {"approx_kl": over_tokens(log_ratio.exp() - 1 - log_ratio)}
    if isinstance(config, RlooConfig):
        ratio, advantage = log_ratio.sum(dim=1).exp(), c["advantages"][:, 0]
        clipped = torch.clamp(ratio, 1 - config.clip, 1 + config.clip)
        loss = (-c["importance"][:, 0] * torch.min(ratio * advantage, clipped * advantage)).mean()
        held = (clipped * advantage < ratio * advantage).double().mean()
        return loss, told | {"loss": loss, "policy_loss": loss, "ratio": ratio.mean(), "clip_fraction": held}
    ratio, advantage = log_ratio.exp(), c["advantages"]
    clipped = torch.clamp(ratio, 1 - config.clip, 1 + config.clip)
    losses = -c["importance"] * torch.min(ratio * advantage, clipped * advantage)
    told |= {"ratio": over_tokens(ratio)}
    told |= {"clip_fraction": over_tokens((clipped * advantage < ratio * advantage).double())}
    if isinstance(config, GrpoConfig):
        of_responses = (losses * mask).sum(dim=1) / mask.sum(dim=1)
        loss = of_responses.mean() if config.token_mean == "response" else over_tokens(losses)
        return loss, told | {"loss": loss, "policy_loss": loss}
    assert isinstance(config, PpoConfig)
    squares, held = (values - c["returns"]) ** 2, torch.zeros_like(mask)
    if config.value_clip is not None:
        near = torch.clamp(values, c["old_values"] - config.value_clip, c["old_values"] + config.value_clip)
        held = ((near - c["returns"]) ** 2 > squares + 1e-12).double()
        squares = torch.max(squares, (near - c["returns"]) ** 2)
    policy, value = over_tokens(losses), over_tokens(squares) / 2
    loss = policy + config.value_weight * value
    told |= {"value_clip_fraction": over_tokens(held), "value_loss": value, "policy_loss": policy, "loss": loss}
    return loss, told


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 7), longest=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_loss_gradient_and_metrics_equal_a_dense_reference(name: str, seed: int, samples: int, longest: int) -> None:
    config, s = CASES[name], step(seed, samples, longest)
    s = s if isinstance(config, RlooConfig) else by_token(s, seed)
    found, expected = [], []
    for function, into in ((loss_of, found), (dense, expected)):
        scored = s.scored.clone().requires_grad_()
        loss, metrics = function(config, s._replace(scored=scored))
        loss.backward()
        into += [loss.detach(), scored.grad, {key: float(value.detach()) for key, value in metrics.items()}]
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)
    assert found[2] == pytest.approx(expected[2], rel=1e-12, abs=1e-6)  # fractions are counted in float32
    exact = {"loss", "policy_loss", "value_loss", "ratio", "approx_kl"} & found[2].keys()
    assert {key: found[2][key] for key in exact} == pytest.approx({key: expected[2][key] for key in exact}, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_steps_of_these_tests_are_clipped_on_both_sides(name: str) -> None:
    fractions = [float(loss_of(CASES[name], step(seed))[1]["clip_fraction"]) for seed in range(20)]
    assert 0.05 < sum(fractions) / 20 < 0.8
    if CASES[name].has_critic and getattr(CASES[name], "value_clip", None) is not None:
        assert 0.05 < float(loss_of(CASES[name], step())[1]["value_clip_fraction"]) < 0.8


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 9), data=st.data())
@settings(max_examples=25, deadline=None)
def test_bug_loss_divided_by_a_micro_batchs_tokens(name: str, seed: int, samples: int, data: st.DataObject) -> None:
    """trl PR 6024: shares of micro-batches, however a step is cut, add up to the whole, and so do gradients."""
    config, s = CASES[name], step(seed, samples)
    edges = [0, *sorted(data.draw(st.lists(st.integers(1, samples), max_size=4, unique=True))), samples]

    def added(cuts: list[tuple[int, int]]) -> tuple[float, Tensor, dict[str, float]]:
        scored = s.scored.clone().requires_grad_()
        loss, told = 0.0, dict[str, float]()
        for start, end in cuts:
            if start == end:
                continue
            share, metrics = loss_of(config, s._replace(scored=scored).samples(start, end))
            share.backward()
            loss += float(share.detach())
            told = {key: told.get(key, 0.0) + float(value) for key, value in metrics.items()}
        assert scored.grad is not None
        return loss, scored.grad, told

    whole, parts = added([(0, samples)]), added(list(pairwise(edges)))
    assert parts[0] == pytest.approx(whole[0], abs=1e-12)
    torch.testing.assert_close(parts[1], whole[1], rtol=0, atol=1e-12)
    counted = {key for key in whole[2] if key.endswith("fraction")}
    for key, value in whole[2].items():
        assert parts[2][key] == pytest.approx(value, abs=1e-6 if key in counted else 1e-12), key


@pytest.mark.parametrize("name", CASES)
def test_the_first_update_has_ratio_1_and_the_gradient_of_its_log_probs(name: str) -> None:
    """Nothing is clipped, and the KL is 0, in every bit."""
    config, s = CASES[name], step(4)
    s = s._replace(columns={**s.columns, "old_logps": s.scored[:, 0].clone(), "old_values": s.scored[:, 1].clone()})
    scored = s.scored.clone().requires_grad_()
    loss, metrics = loss_of(config, s._replace(scored=scored))
    loss.backward()
    told = {key: float(metrics[key]) for key in ("ratio", "approx_kl", "clip_fraction")}
    assert told == {"ratio": 1, "approx_kl": 0, "clip_fraction": 0}
    assert float(metrics.get("value_clip_fraction", torch.zeros(()))) == 0
    lengths = s.lengths.repeat_interleave(s.lengths).double()
    per_token = {
        "rloo": 1 / s.totals.pairs, "grpo": 1 / (lengths * s.totals.pairs),
    }.get(name, 1 / s.totals.nll_tokens)  # fmt: skip
    expected = -s.columns["importance"] * s.columns["advantages"] * per_token
    assert scored.grad is not None
    torch.testing.assert_close(scored.grad[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name: str) -> None:
    s = step(2, samples=3, longest=4)
    torch.autograd.gradcheck(
        lambda scored: loss_of(CASES[name], s._replace(scored=scored))[0], s.scored.requires_grad_()
    )


@pytest.mark.parametrize("name", CASES)
def test_metrics_carry_no_graph(name: str) -> None:
    s = step()
    loss, metrics = loss_of(CASES[name], s._replace(scored=s.scored.requires_grad_()))
    assert loss.requires_grad and loss.shape == ()
    assert not any(value.requires_grad or value.shape for value in metrics.values())


@pytest.mark.parametrize("name", CASES)
def test_float32_is_close_to_float64(name: str) -> None:
    exact, single = (
        float(loss_of(CASES[name], step(9, 64, dtype=dtype))[0]) for dtype in (torch.float64, torch.float32)
    )
    assert single == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_beyond_all_numbers_does_no_harm_where_it_is_clipped(name: str, advantage: float) -> None:
    s = step(1, dtype=torch.float32)
    columns = {key: torch.full_like(value, advantage) if key == "advantages" else value
               for key, value in s.columns.items()}  # fmt: skip
    columns["old_logps"] = s.scored[:, 0] - 200
    scored = s.scored.clone().requires_grad_()
    loss, _ = loss_of(CASES[name], s._replace(scored=scored, columns=columns))
    loss.backward()
    assert scored.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(scored.grad).all() and not scored.grad[:, 0].any()


def test_rounding_is_no_clipping_of_values() -> None:
    """Within the clip both squares are the same numbers, which rounding alone parts."""
    s = step(5, samples=200, dtype=torch.float32)
    near = {**s.columns, "old_values": s.scored[:, 1] + 0.2 * torch.rand(len(s.scored))}
    assert float(loss_of(CASES["ppo"], s._replace(columns=near))[1]["value_clip_fraction"]) == 0


@pytest.mark.parametrize("kind", [PpoConfig, RlooConfig, GrpoConfig])
def test_bug_k3_as_a_loss_has_a_biased_gradient(kind: type) -> None:
    """trl#4967, arXiv 2510.01555: over all that may be drawn, by its probability, the gradient of the loss is that of
    `-(E[score] - coefficient * KL)`; with k3 in the loss in its place it is not."""
    torch.manual_seed(0)
    theta = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference, scores = torch.randn(2, 5, dtype=torch.float64).unbind()
    reference = reference.log_softmax(0)
    logps, coefficient = theta.log_softmax(0), 0.7
    old = logps.detach()
    wanted = torch.autograd.grad(-(logps.exp() * (scores - coefficient * (logps - reference))).sum(), theta)[0]

    def gradient(advantages: Tensor, beside: Tensor | float = 0.0) -> Tensor:
        """Each of five tokens is a response, and weighs its probability."""
        now = theta.log_softmax(0)
        columns = {"old_logps": old, "advantages": advantages, "importance": old.exp() * 5,
                   "old_values": old, "returns": old}  # fmt: skip
        scored = torch.stack([now, old], dim=1) if kind is PpoConfig else now
        loss = build_objective(kind()).loss_of_tokens(scored, torch.ones(5, dtype=torch.int64), Totals(5, 5), columns)[
            0
        ]
        return torch.autograd.grad(loss + beside, theta)[0]

    torch.testing.assert_close(gradient(scores - coefficient * (old - reference)), wanted, rtol=0, atol=1e-12)
    apart = reference - theta.log_softmax(0)
    k3 = coefficient * (old.exp() * (apart.exp() - 1 - apart)).sum()
    assert (gradient(scores, k3) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_bug_first_ratio_is_not_1_where_the_temperature_is_on_one_side(name: str) -> None:
    """trl#4159, OpenRLHF#853, NeMo-RL#935: it would show in what every first update tells."""
    s = step(3)
    same = {**s.columns, "old_logps": s.scored[:, 0]}
    colder = {**s.columns, "old_logps": s.scored[:, 0] / 0.7}
    told = [loss_of(CASES[name], s._replace(columns=columns))[1] for columns in (same, colder)]
    assert float(told[0]["ratio"]) == 1 and float(told[0]["approx_kl"]) == 0
    assert abs(float(told[1]["ratio"]) - 1) > 0.01 and float(told[1]["approx_kl"]) > 0.01


def test_importance_weights_make_up_for_another_drawer() -> None:
    """Drawn by the engine's probabilities and weighed, the gradient is that of what the policy would draw."""
    theta = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    old, engine = theta.log_softmax(0), (1.3 * theta).log_softmax(0)
    weights = torch.from_numpy(importance(old.numpy(), engine.numpy(), 100.0))
    torch.testing.assert_close(engine.exp() * weights, old.exp(), rtol=0, atol=1e-14)


class TestOnline:
    @pytest.mark.parametrize("pairs", [OrpoConfig(lambda_=0.7), DpoConfig(beta=0.3), OrpoConfig(gradient_metrics=True)])
    def test_it_is_the_objective_of_its_pairs(self, pairs: Any) -> None:
        online, inner = build_objective(OnlineConfig(pairs=pairs)), build_objective(pairs)
        sums, lengths = -torch.rand(2, 3) * 5, torch.full((2, 3), 5)
        columns = {"reference": -torch.rand(2, 2) * 5}
        found, expected = (each.loss(sums, lengths, Totals(2, 20), columns) for each in (online, inner))
        assert torch.equal(found[0], expected[0]) and found[1].keys() == expected[1].keys() - {"kl"}  # of the rounds
        for name in ("needs_reference", "score_prompts", "best_alone", "model", "judges_labels"):
            assert getattr(online, name) == getattr(inner, name)


def test_objectives_on_rollouts_are_these() -> None:
    on_rollouts = {kind.model_fields["name"].default: kind.by_token for kind in OBJECTIVES if kind.rolls_out}
    assert on_rollouts == {"ppo": True, "rloo": True, "grpo": True, "online": False}
    assert math.isclose(PpoConfig().kl_coefficient, 0.1)
