"""Win-rates: counts, interval and test, of whole and soft outcomes, against known answers and simulated judges."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest, permutation_test

from orpo_ray.statistics.sign_flip import sign_flip_test
from orpo_ray.statistics.winrate import (
    TIE,
    WinRate,
    holm,
    length_control,
    length_controlled,
    mean_outcome,
    outcomes,
    win_rate,
)

NAN = float("nan")


def judged(rng: np.random.Generator, prompts: int, rounds: int, win: float, tie: float = 0.0, alike: float = 2.0):
    """A's scores against zeros: each prompt has its own chances, drawn about `win`, `tie` and the rest.

    The smaller `alike`, the more do a prompt's rounds come out the same.
    """
    shares = np.array([win, tie, 1 - win - tie])
    chances = np.zeros((prompts, 3))
    chances[:, shares > 0] = rng.dirichlet(shares[shares > 0] * alike, prompts)
    draws = rng.random((prompts, rounds))
    scores = np.where(draws < chances[:, :1], 1.0, np.where(draws < chances[:, :2].sum(1, keepdims=True), 0.0, -1.0))
    return scores, np.zeros_like(scores)


# Counts


def test_counts_with_ties_half_and_one_round():
    result = win_rate([3, 2, 1, 0, 2], [1, 2, 2, 0, 1])
    assert (result.wins, result.ties, result.losses, result.n, result.prompts) == (2, 2, 1, 5, 5)
    assert result.win_rate == 0.6
    assert result.rounds == (0.6,)
    assert result.sd is None


def test_several_rounds_with_missing_scores():
    a = [[1, 2, NAN], [0, NAN, NAN], [5, 5, NAN], [NAN, NAN, NAN]]
    b = [[0, 3, 1.0], [1, 1.0, NAN], [4, 5, 7.0], [1.0, 1.0, 1.0]]
    won = outcomes(a, b)
    np.testing.assert_array_equal(won, [[1, 0, NAN], [0, NAN, NAN], [1, 0.5, NAN], [NAN, NAN, NAN]])
    result = win_rate(a, b)
    assert (result.wins, result.ties, result.losses, result.n, result.prompts) == (2, 1, 2, 5, 3)
    assert result.win_rate == pytest.approx(0.5)
    assert result.rounds == pytest.approx((2 / 3, 1 / 4))  # the third round has no comparison
    assert result.sd == pytest.approx(np.std([2 / 3, 1 / 4], ddof=1))


def test_rewards_that_a_packed_forward_cannot_tell_apart_are_a_tie():
    b = np.array([0.0, 100.0, -3.0, 0.0, 0.0])
    a = b + np.array([0.9, -0.9, 0.0, 1.1, -1.1]) * TIE
    np.testing.assert_array_equal(outcomes(a, b).ravel(), [0.5, 0.5, 0.5, 1, 0])
    np.testing.assert_array_equal(outcomes([1, 1, 1], [1, 2, 0], tie=0).ravel(), [0.5, 0, 1])


@given(
    st.integers(1, 3).flatmap(
        lambda rounds: st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from([0.0, 1.0, 2.0, NAN]), st.sampled_from([0.0, 1.0, 2.0, NAN]),
                    st.integers(1, 9), st.integers(1, 9),
                ),
                min_size=rounds, max_size=rounds,
            ),
            min_size=1, max_size=30,
        )
    )
)  # fmt: skip
def test_the_two_directions_mirror_each_other(rows):
    a, b, lengths_a, lengths_b = np.moveaxis(np.array(rows, dtype=np.float64), -1, 0)
    if np.isnan(a - b).all():
        return
    forward, backward = win_rate(a, b, resamples=100), win_rate(b, a, resamples=100)
    assert (forward.wins, forward.ties, forward.losses) == (backward.losses, backward.ties, backward.wins)
    assert forward.win_rate == pytest.approx(1 - backward.win_rate, abs=1e-12)
    assert forward.rounds == pytest.approx([1 - rate for rate in backward.rounds], abs=1e-12)
    for name, value in asdict(forward.reverse()).items():
        assert value == pytest.approx(getattr(backward, name), abs=1e-12), name
    assert forward.sd == (None if backward.sd is None else pytest.approx(backward.sd, abs=1e-12))
    assert forward.p_value == backward.p_value
    low, high = forward.ci95
    assert (low, high) == pytest.approx((1 - backward.ci95[1], 1 - backward.ci95[0]), abs=1e-12)
    assert 0 <= low <= forward.win_rate + 1e-12
    assert forward.win_rate - 1e-12 <= high <= 1
    assert 0 < forward.p_value <= 1
    controlled = length_control(outcomes(a, b), lengths_a, lengths_b, resamples=50)
    mirrored = length_control(outcomes(b, a), lengths_b, lengths_a, resamples=0).reverse()
    assert controlled.unknown == mirrored.unknown
    if controlled.unknown is None:
        low, high = controlled.ci95
        assert 0 <= low <= high <= 1
        assert controlled.win_rate == pytest.approx(mirrored.win_rate, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], []), ([1, 2], [1]), ([[1, 2]], [[1], [2]]), ([1, float("inf")], [1, 2]), ([1, 2], [-float("inf"), 2]),
        ([NAN, 1], [1, NAN]), ([[[1]]], [[[1]]]), (1, 2),
    ],
)  # fmt: skip
def test_impossible_input_is_refused(a, b):
    with pytest.raises(ValueError):
        win_rate(a, b)


# Interval


def test_interval_is_the_normal_one_where_there_are_many_prompts():
    low, high = win_rate(np.repeat([1, -1], [600, 400]), np.zeros(1000)).ci95
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert low == pytest.approx(0.6 - half, abs=0.003)
    assert high == pytest.approx(0.6 + half, abs=0.003)


def test_repeating_every_comparison_adds_no_certainty():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 200), rng.normal(0, 1, 200)
    once = win_rate(a, b)
    repeated = win_rate(np.tile(a[:, None], 5), np.tile(b[:, None], 5))
    more_prompts = win_rate(np.tile(a, 5), np.tile(b, 5))
    width = np.diff(once.ci95)[0]
    assert repeated.win_rate == pytest.approx(once.win_rate)
    assert np.diff(repeated.ci95)[0] == pytest.approx(width, rel=0.05)
    assert repeated.p_value == pytest.approx(once.p_value, rel=1e-9)
    assert np.diff(more_prompts.ci95)[0] == pytest.approx(width / np.sqrt(5), rel=0.05)
    assert more_prompts.p_value < once.p_value


def test_prompts_with_more_comparisons_count_for_more():
    result = win_rate([[1, 1, 1], [0, NAN, NAN]], [[0, 0, 0], [1, 1, 1]])
    assert result.win_rate == 0.75
    assert result.ci95 == (0, 1)


def test_the_seed_fixes_the_result():
    a, b = [1, 0, 2, 1, 0, 3, 1], [0, 0, 1, 2, 0, 1, 2]
    assert win_rate(a, b, seed=1) == win_rate(a, b, seed=1)


@pytest.mark.parametrize(("a", "low", "high"), [(1, 0.025 ** (1 / 50), 1), (-1, 0, 1 - 0.025 ** (1 / 50))])
def test_where_one_model_always_wins_the_interval_is_clopper_pearsons(a, low, high):
    assert win_rate([a] * 50, [0] * 50).ci95 == pytest.approx((low, high))


def test_all_ties_are_even_but_not_certain():
    result = win_rate([1] * 100, [1] * 100)
    assert result.win_rate == 0.5
    assert result.p_value == 1.0
    low, high = result.ci95
    assert low == pytest.approx(0.5 - 0.5 * (1 - 0.025**0.01))
    assert low + high == pytest.approx(1)


@pytest.mark.parametrize(
    ("prompts", "win", "tie", "alike"),
    [
        (100, 0.5, 0.0, 1.0),
        pytest.param(100, 0.85, 0.0, 2.0, marks=pytest.mark.long),
        pytest.param(150, 0.55, 0.3, 1.0, marks=pytest.mark.long),
    ],
)
def test_interval_covers_the_truth_as_often_as_it_says(prompts, win, tie, alike):
    rng = np.random.default_rng(7)
    covered = 0
    for i in range(500):
        low, high = win_rate(*judged(rng, prompts, 3, win, tie, alike), resamples=1000, seed=i).ci95
        covered += low <= win + tie / 2 <= high
    assert 0.93 <= covered / 500 <= 0.975


# Test of an even win-rate


def test_with_one_round_the_p_value_is_the_sign_tests():
    scores = np.repeat([1, 0, -1], [37, 20, 18])
    assert win_rate(scores, np.zeros(75)).p_value == pytest.approx(binomtest(37, 55).pvalue, rel=1e-12)


def test_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.integers(0, 3, (9, 3)).astype(float), rng.integers(0, 3, (9, 3)).astype(float)
        a[rng.random(a.shape) < 0.1] = NAN
        excess = np.nansum(2 * outcomes(a, b) - 1, axis=1)
        flips = permutation_test(
            (excess,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True, n_resamples=2**9
        )
        assert win_rate(a, b, resamples=10).p_value == pytest.approx(flips.pvalue, rel=1e-12)


@pytest.mark.parametrize("alike", [0.5, pytest.param(20.0, marks=pytest.mark.long)])
def test_p_values_are_uniform_where_the_models_are_even(alike):
    rng = np.random.default_rng(1)  # 1,000 prompts, so that p-values are many and close to each other
    p = np.array([win_rate(*judged(rng, 1000, 3, 0.4, 0.2, alike), resamples=2).p_value for _ in range(1000)])
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.035 <= (p < 0.05).mean() <= 0.065


def test_false_alarms_are_as_rare_where_even_models_win_differently():
    # A wins narrowly on most prompts and loses clearly on the rest, so outcomes are not symmetric about one half.
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(1000):
        chance = np.where(rng.random((200, 1)) < 0.75, 0.6, 0.2)  # 0.75 * 0.6 + 0.25 * 0.2 = 0.5
        alarms += win_rate(rng.random((200, 3)) < chance, np.full((200, 3), 0.5), resamples=2).p_value < 0.05
    assert 0.035 <= alarms / 1000 <= 0.065


def test_p_value_is_small_under_an_effect_and_has_no_floor():
    rng = np.random.default_rng(4)
    p = [win_rate(*judged(rng, 200, 3, 0.65), resamples=2).p_value for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) > 0.95
    assert win_rate(np.ones(1000), np.zeros(1000)).p_value == pytest.approx(2 * 0.5**1000, rel=1e-9)


# A judge's probabilities


def test_verdicts_of_the_same_probability_are_no_chance():
    """805 of .65: rounded to whole wins they were all ties, p = 1.0."""
    result = mean_outcome(np.full(805, 0.65))
    assert (result.wins, result.ties, result.losses, result.win_rate) == (805, 0, 0, pytest.approx(0.65))
    assert result.p_value == pytest.approx(2 * 0.5**805, rel=1e-6)
    low, high = result.ci95
    assert 0.64 < low <= 0.65 <= high < 0.66
    assert mean_outcome(np.full(805, 0.5)).p_value == 1.0
    assert mean_outcome(np.tile([0.65, 0.35], 400)).p_value == 1.0


def test_probabilities_near_0_and_1_are_as_good_as_verdicts():
    rng = np.random.default_rng(0)
    whole = (rng.random((300, 2)) < 0.55).astype(float)
    hard, soft = mean_outcome(whole), mean_outcome(np.abs(whole - rng.random(whole.shape) * 1e-3))
    assert soft.win_rate == pytest.approx(hard.win_rate, abs=1e-3)
    assert soft.ci95 == pytest.approx(hard.ci95, abs=2e-3)
    assert soft.p_value == pytest.approx(hard.p_value, rel=0.15)
    assert mean_outcome(1 - whole).p_value == mean_outcome(whole).p_value


@pytest.mark.parametrize("prompts", [3, 9, 14, 15, 16])
def test_soft_p_values_are_those_of_all_sign_flips(prompts):
    rng = np.random.default_rng(prompts)
    for shape in ((0.3, 0.3), (1, 1), (4, 2)):
        excess = 2 * rng.beta(*shape, prompts) - 1
        signs = 1 - 2 * (np.arange(2**prompts)[:, None] >> np.arange(prompts) & 1)
        exact = (np.abs(signs @ excess) >= abs(excess.sum()) - 1e-12).mean()
        exactly = 1e-9 if prompts <= 14 else 0.03
        assert sign_flip_test(excess) == pytest.approx(exact, rel=exactly, abs=2.0 ** (2 - prompts) * (prompts > 14))


NULLS = {
    "a judge without an opinion": lambda rng, n: rng.beta(8, 8, n),
    "a sure one": lambda rng, n: rng.beta(0.3, 0.3, n),
    "lopsided": lambda rng, n: np.where(rng.random(n) < 0.7, rng.normal(0.6, 0.02, n), rng.normal(0.8 / 3, 0.02, n)),
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("prompts", [50, 200])
def test_false_alarms_of_soft_outcomes_are_as_rare_as_they_say(null, prompts):
    rng = np.random.default_rng(6)
    p = np.array([sign_flip_test(2 * NULLS[null](rng, prompts) - 1) for _ in range(1500)])
    assert 0.035 <= (p < 0.05).mean() <= 0.065
    assert 0.003 <= (p < 0.01).mean() <= 0.018


@pytest.mark.parametrize("outcome", [-0.1, 1.1, float("inf")])
def test_outcomes_that_are_none_are_refused(outcome):
    for statistic in (mean_outcome, lambda won: length_controlled(won, [1, 2, 3], [3, 2, 1])):
        with pytest.raises(ValueError, match="expected"):
            statistic([0.5, outcome, 1.0])


# Several tests


def test_holm_of_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_fields_that_reports_read():
    result = win_rate([1, 0], [0, 1])
    assert isinstance(result, WinRate)
    assert result.n == result.wins + result.ties + result.losses == 2
