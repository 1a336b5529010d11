"""What a token of a rollout was worth, against sums written out one by one, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.objectives.advantages import (
    Floats,
    adapted,
    explained_variance,
    gae,
    group_relative,
    importance,
    leave_one_out,
    mismatch,
    response_totals,
    token_rewards,
    whitened,
)

RAGGED = {"lengths": st.lists(st.integers(1, 9), min_size=1, max_size=7), "seed": st.integers(0, 10_000)}


def drawn(seed: int, *sizes: int) -> list[Floats]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=size) for size in sizes]


def pieces(values: Floats, lengths: list[int]) -> list[list[float]]:
    return [values[start:end].tolist() for start, end in pairwise([0, *np.cumsum(lengths).tolist()])]


class TestTokenRewards:
    @given(**RAGGED)
    @settings(max_examples=30, deadline=None)
    def test_a_nat_costs_the_coefficient_and_the_score_is_at_the_last_token(
        self, lengths: list[int], seed: int
    ) -> None:
        scores, kl = drawn(seed, len(lengths), sum(lengths))
        expected = [
            -0.3 * nats + (score if place == len(piece) - 1 else 0)
            for score, piece in zip(scores, pieces(kl, lengths), strict=True) for place, nats in enumerate(piece)
        ]  # fmt: skip
        np.testing.assert_allclose(token_rewards(scores, kl, lengths, 0.3), expected, rtol=0, atol=1e-15)

    def test_bug_score_on_the_token_behind_the_end(self) -> None:
        """trl#3750, #1893, PR 6952: of each response the last real token has it, whatever that token is."""
        rewards = token_rewards([5.0, 7.0, 9.0], np.zeros(6), [2, 3, 1], 0.1)
        assert rewards.tolist() == [0, 5, 0, 0, 7, 9]

    def test_totals_are_the_score_less_the_whole_kl(self) -> None:
        scores, kl = drawn(3, 3, 6)
        found = response_totals(token_rewards(scores, kl, [2, 3, 1], 0.4), [2, 3, 1])
        of_responses = [kl[:2].sum(), kl[2:5].sum(), kl[5:].sum()]
        np.testing.assert_allclose(found, scores - 0.4 * np.array(of_responses), rtol=0, atol=1e-14)


class TestGae:
    def test_bug_masked_values_leak(self) -> None:
        """ROLL#447, verl#50: what stands behind a response, be it 100, is none of its."""
        alone = gae([0.0, 1.0], [0.0, 0.0], [2], gamma=1.0, lambda_=0.95)
        followed = gae([0.0, 1.0, 0.0], [0.0, 0.0, 100.0], [2, 1], gamma=1.0, lambda_=0.95)
        np.testing.assert_allclose(alone, [0.95, 1.0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(followed, [0.95, 1.0, -100.0], rtol=0, atol=1e-12)

    @given(**RAGGED, gamma=st.floats(0.1, 1), lambda_=st.floats(0, 1))
    @settings(max_examples=40, deadline=None)
    def test_it_is_the_sum_written_out(self, lengths: list[int], seed: int, gamma: float, lambda_: float) -> None:
        rewards, values = drawn(seed, sum(lengths), sum(lengths))
        expected = []
        for r, v in zip(pieces(rewards, lengths), pieces(values, lengths), strict=True):
            v = [*v, 0.0]
            errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
            expected += [
                math.fsum((gamma * lambda_) ** (k - t) * errors[k] for k in range(t, len(r))) for t in range(len(r))
            ]
        found = gae(rewards, values, lengths, gamma=gamma, lambda_=lambda_)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    @given(**RAGGED)
    @settings(max_examples=30, deadline=None)
    def test_neighbours_are_none_of_its_bits(self, lengths: list[int], seed: int) -> None:
        rewards, values = drawn(seed, sum(lengths), sum(lengths))
        together = gae(rewards, values, lengths, gamma=0.9, lambda_=0.8)
        alone = [
            gae(r, v, [len(r)], gamma=0.9, lambda_=0.8)
            for r, v in zip(pieces(rewards, lengths), pieces(values, lengths), strict=True)
        ]
        assert np.array_equal(together, np.concatenate(alone))

    def test_its_ends(self) -> None:
        """lambda 1: what is still to come less the value; lambda 0: the error of one step."""
        rewards, values = drawn(1, 5, 5)
        to_come = rewards[::-1].cumsum()[::-1]
        np.testing.assert_allclose(gae(rewards, values, [5], gamma=1.0, lambda_=1.0), to_come - values, atol=1e-12)
        errors = rewards + 0.9 * np.append(values[1:], 0) - values
        np.testing.assert_allclose(gae(rewards, values, [5], gamma=0.9, lambda_=0.0), errors, atol=1e-12)


class TestWhitening:
    def test_bug_whitening_over_padding(self) -> None:
        """SkyRL#1305: mean and variance are those of real tokens, which are all that there are."""
        advantages = drawn(2, 23)[0] * 3 + 1
        found = whitened(advantages)
        mean = math.fsum(advantages) / 23
        deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in advantages) / 23 + 1e-8)
        np.testing.assert_allclose(found, [(a - mean) / deviation for a in advantages], rtol=0, atol=1e-12)
        padded = np.concatenate([advantages, np.zeros(9)])
        assert np.abs(found - whitened(padded)[:23]).max() > 0.1

    @pytest.mark.parametrize("alike", [[4.0], [0.3, 0.3, 0.3]])
    def test_all_alike_are_zero(self, alike: list[float]) -> None:
        assert np.abs(whitened(alike)).max() < 1e-11


class TestGroups:
    def test_two_by_hand(self) -> None:
        assert leave_one_out([3.0, 1.0, 0.5, 0.5], 2).tolist() == [2, -2, 0, 0]
        assert group_relative([3.0, 1.0, 0.5, 0.5], 2, scale=False).tolist() == [1, -1, 0, 0]
        scaled = 1 / (math.sqrt(2) + 1e-4)
        np.testing.assert_allclose(group_relative([3.0, 1.0], 2, scale=True), [scaled, -scaled], rtol=0, atol=1e-15)

    @given(prompts=st.integers(1, 5), samples=st.integers(2, 6), seed=st.integers(0, 9999))
    @settings(max_examples=40, deadline=None)
    def test_they_are_what_they_say(self, prompts: int, samples: int, seed: int) -> None:
        totals = drawn(seed, prompts * samples)[0]
        left_out, plain, scaled = [], [], []
        for group in totals.reshape(prompts, samples).tolist():
            mean = math.fsum(group) / samples
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in group) / (samples - 1))
            left_out += [x - (math.fsum(group) - x) / (samples - 1) for x in group]
            plain += [x - mean for x in group]
            scaled += [(x - mean) / (deviation + 1e-4) for x in group]
        np.testing.assert_allclose(leave_one_out(totals, samples), left_out, rtol=0, atol=1e-12)
        np.testing.assert_allclose(group_relative(totals, samples, scale=False), plain, rtol=0, atol=1e-12)
        np.testing.assert_allclose(group_relative(totals, samples, scale=True), scaled, rtol=0, atol=1e-11)
        assert np.abs(leave_one_out(totals, samples).reshape(prompts, samples).sum(axis=1)).max() < 1e-12

    def test_a_samples_baseline_does_not_depend_on_it(self) -> None:
        """Which makes it unbiased: a sample's own total counts in full, and its prompt's others in no other prompt."""
        totals = drawn(5, 6)[0]
        moved = totals.copy()
        moved[1] += 0.75
        change = leave_one_out(moved, 3) - leave_one_out(totals, 3)
        np.testing.assert_allclose(change, [-0.375, 0.75, -0.375, 0, 0, 0], rtol=0, atol=1e-14)

    @pytest.mark.parametrize("total", [0.0, 0.1, -1e6 / 3])
    @pytest.mark.parametrize("samples", [2, 3, 7])
    def test_equal_totals_say_nothing(self, total: float, samples: int) -> None:
        """Not even what is left of rounding, which a standard deviation of as little would make 1."""
        for found in (
            leave_one_out([total] * samples, samples),
            group_relative([total] * samples, samples, scale=True),
            group_relative([total] * samples, samples, scale=False),
        ):
            assert found.tolist() == [0] * samples

    def test_rounding_of_scores_is_not_blown_up(self) -> None:
        assert np.abs(group_relative([0.5, 0.5 + 6e-8, 0.5], 3, scale=True)).max() < 1e-3

    def test_one_response_has_nothing_to_be_compared_with(self) -> None:
        for call in (lambda: leave_one_out([1.0], 1), lambda: group_relative([1.0], 1, scale=True)):
            with pytest.raises(ValueError, match="at least 2"):
                call()


class TestAdaptiveKl:
    @pytest.mark.parametrize(
        ("kl", "expected"),
        [(6, 0.1), (6.6, 0.1 * (1 + 0.1 * 64 / 2000)), (60, 0.1 * (1 + 0.2 * 64 / 2000)),
         (0, 0.1 * (1 - 0.2 * 64 / 2000)), (-3, 0.1 * (1 - 0.2 * 64 / 2000))],
    )  # fmt: skip
    def test_formula(self, kl: float, expected: float) -> None:
        assert adapted(0.1, kl, 6, 2000, 64) == pytest.approx(expected, rel=1e-14)

    def test_no_error_changes_nothing(self) -> None:
        assert adapted(0.1, 6.0, 6.0, 2000, 64) == 0.1

    def test_a_horizon_that_a_round_could_take_past_zero_is_refused(self) -> None:
        with pytest.raises(ValueError, match="too short"):
            adapted(0.1, 0.0, 6.0, 100, 500)
        asked = ("rollouts.prompts=64", "rollouts.samples=8", "objective.kl_horizon=102")
        rollouts_config(*asked)  # fixed: nothing adapts
        rollouts_config(*asked, "objective.kl_target=6", "objective.kl_horizon=103")
        with pytest.raises(UserError, match=r"kl_horizon \(102\) should be above 102.4: a round of 512 responses"):
            rollouts_config(*asked, "objective.kl_target=6")


def rollouts_config(*overrides: str) -> TrainConfig:
    mapping: dict[str, Any] = {
        "name": "unit", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}, "objective": {"name": "ppo"},
        "rollouts": {"rewards": {"truth": "toy"}},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


class TestEngineAgainstTrainer:
    OLD, ENGINE = [-1.0, -2.0, -0.5], [-1.5, -1.75, -3.0]

    def test_a_token_weighs_what_its_probabilities_say_up_to_the_cap(self) -> None:
        expected = [math.exp(0.5), math.exp(-0.25), 2.0]
        np.testing.assert_allclose(importance(self.OLD, self.ENGINE, 2.0), expected, rtol=1e-15)

    def test_a_response_weighs_the_product_truncated_as_a_whole(self) -> None:
        expected = [math.exp(0.25), math.exp(0.25), 2.0]
        np.testing.assert_allclose(importance(self.OLD, self.ENGINE, 2.0, [2, 1]), expected, rtol=1e-15)

    def test_without_a_cap_nothing_is_weighed(self) -> None:
        assert importance(self.OLD, self.ENGINE, None).tolist() == [1, 1, 1]
        assert importance([0.0], [-1e5], 3.0) == pytest.approx([3.0])

    def test_mismatch(self) -> None:
        found = mismatch(self.OLD, self.ENGINE)
        apart = [0.5, -0.25, 2.5]
        assert found["mismatch_mean"] == pytest.approx(3.25 / 3, rel=1e-15)
        assert found["mismatch_max"] == 2.5
        assert found["mismatch_k3"] == pytest.approx(sum(math.exp(x) - x - 1 for x in apart) / 3, rel=1e-13)
        assert mismatch(self.OLD, self.OLD) == {"mismatch_mean": 0, "mismatch_max": 0, "mismatch_k3": 0}
        assert mismatch([0.0], [-800.0])["mismatch_k3"] == math.inf

    def test_small_mismatch_is_not_lost_to_rounding(self) -> None:
        assert mismatch([1e-6], [0.0])["mismatch_k3"] == pytest.approx(5e-13, rel=1e-3)


def test_explained_variance() -> None:
    returns = drawn(4, 50)[0]
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(50, 7.0), returns) == pytest.approx(0, abs=1e-14)
    assert explained_variance(-returns, returns) == pytest.approx(-3, rel=1e-12)
    assert math.isnan(explained_variance([1.0, 2.0], [3.0, 3.0]))


@pytest.mark.parametrize("call", [
    lambda: token_rewards([1.0, math.nan], [0.0, 0.0], [1, 1], 0.1),
    lambda: token_rewards([1.0, 1.0], [0.0, math.inf], [1, 1], 0.1),
    lambda: token_rewards([1.0, 1.0], [0.0, 0.0], [2, 0], 0.1),
    lambda: token_rewards([1.0], [0.0, 0.0], [1, 1], 0.1),
    lambda: token_rewards([1.0, 1.0], [0.0, 0.0, 0.0], [1, 1], 0.1),
    lambda: gae([0.0], [0.0, 1.0], [2], gamma=1.0, lambda_=1.0),
    lambda: gae([0.0, 0.0], [0.0, math.nan], [2], gamma=1.0, lambda_=1.0),
    lambda: whitened([0.0, math.nan]),
    lambda: leave_one_out([0.0, math.inf], 2),
    lambda: leave_one_out([0.0, 1.0, 2.0], 2),
    lambda: importance([0.0], [-math.inf], 2.0),
    lambda: mismatch([0.0], [0.0, 1.0]),
    lambda: explained_variance([0.0], [0.0, 1.0]),
])  # fmt: skip
def test_what_cannot_be_computed_is_refused(call: Any) -> None:
    """A number that is not finite would be in every mean; arrays that do not fit would be their neighbours'."""
    with pytest.raises(ValueError):
        call()
