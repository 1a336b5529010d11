"""Win-rates and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.evaluation.winrate import win_rate


def test_counts_and_ties_half():
    result = win_rate([3, 2, 1, 0, 2], [1, 2, 2, 0, 1])
    assert (result.wins, result.ties, result.losses, result.n) == (2, 2, 1, 5)
    assert result.win_rate == 0.6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_two_directions_sum_to_one(scores):
    a, b = zip(*scores, strict=True)
    forward, backward = win_rate(a, b, resamples=100), win_rate(b, a, resamples=100)
    assert forward.win_rate + backward.win_rate == pytest.approx(1)
    assert (forward.wins, forward.ties) == (backward.losses, backward.ties)
    low, high = forward.ci95
    assert 0 <= low <= forward.win_rate + 1e-12
    assert forward.win_rate - 1e-12 <= high <= 1


def test_interval_is_the_normal_one_where_there_are_many_prompts():
    outcomes = np.repeat([1, -1], [600, 400])
    low, high = win_rate(outcomes, np.zeros(1000)).ci95
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert low == pytest.approx(0.6 - half, abs=0.003)
    assert high == pytest.approx(0.6 + half, abs=0.003)


def test_repeating_every_comparison_adds_no_certainty_when_grouped():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 200), rng.normal(0, 1, 200)
    once = win_rate(a, b)
    grouped = win_rate(np.tile(a, 5), np.tile(b, 5), groups=np.tile(np.arange(200), 5))
    naive = win_rate(np.tile(a, 5), np.tile(b, 5))
    width = np.diff(once.ci95)[0]
    assert np.diff(grouped.ci95)[0] == pytest.approx(width, rel=0.05)
    assert np.diff(naive.ci95)[0] == pytest.approx(width / np.sqrt(5), rel=0.05)
    assert grouped.win_rate == pytest.approx(once.win_rate)


def test_groups_of_unequal_size_keep_every_comparison_equal():
    result = win_rate([1, 1, 1, 0], [0, 0, 0, 1], groups=["x", "x", "x", "y"])
    assert result.win_rate == 0.75
    assert result.ci95 == (0, 1)


def test_the_seed_fixes_the_interval():
    a, b = [1, 0, 2, 1, 0, 3, 1], [0, 0, 1, 2, 0, 1, 2]
    assert win_rate(a, b, seed=1) == win_rate(a, b, seed=1)


@pytest.mark.parametrize(("a", "low", "high"), [(1, 0.025 ** (1 / 50), 1), (-1, 0, 1 - 0.025 ** (1 / 50))])
def test_where_one_model_always_wins_the_interval_is_clopper_pearsons(a, low, high):
    assert win_rate([a] * 50, [0] * 50).ci95 == pytest.approx((low, high))


def test_all_ties_are_even_but_not_certain():
    result = win_rate([1] * 100, [1] * 100)
    assert result.win_rate == 0.5
    low, high = result.ci95
    assert low == pytest.approx(0.5 - 0.5 * (1 - 0.025**0.01))
    assert low + high == pytest.approx(1)


def test_interval_covers_the_truth_as_often_as_it_says():
    # The truth is 0.3 + 0.4 / 2 = 0.5; 300 simulated comparisons of 150 prompts with 2 correlated rounds each.
    rng = np.random.default_rng(7)
    covered = 0
    for i in range(300):
        first = rng.choice([1, 0, -1], 150, p=[0.3, 0.4, 0.3])
        second = np.where(rng.random(150) < 0.5, first, rng.choice([1, 0, -1], 150, p=[0.3, 0.4, 0.3]))
        scores = np.concatenate([first, second])
        low, high = win_rate(scores, np.zeros(300), groups=np.tile(np.arange(150), 2), resamples=500, seed=i).ci95
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [([], [], None), ([1, 2], [1], None), ([1, float("nan")], [1, 2], None), ([1, 2], [1, 2], [0])],
)
def test_impossible_input_is_refused(a, b, groups):
    with pytest.raises(ValueError):
        win_rate(a, b, groups)
