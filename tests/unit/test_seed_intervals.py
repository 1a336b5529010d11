"""Means over training seeds: a single run's agrees with its win-rate, and intervals hold the truth as they say."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from scipy.stats import t as student

from orpo_ray.statistics.seeds import of_means, over_seeds
from orpo_ray.statistics.winrate import mean_outcome, outcomes

NAN = float("nan")


def won(rng: np.random.Generator, seeds: int, prompts: int, between: float, shared: float, rounds: int = 3):
    """Outcomes `(seeds, prompts, rounds)` about a win-rate of .6; `between` and `shared`: sd of seeds and prompts."""
    chance = 0.6 + rng.normal(0, between, (seeds, 1, 1)) + rng.uniform(-1, 1, (1, prompts, 1)) * shared * 3**0.5
    return (rng.random((seeds, prompts, rounds)) < chance).astype(float)


@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_one_seed_is_the_win_rate_of_its_run(shape):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (2, *shape)).astype(float)
    scores[rng.random(scores.shape) < 0.15] = NAN  # rounds are missing here and there
    result, expected = over_seeds([outcomes(*scores)]), mean_outcome(outcomes(*scores))
    assert result.mean == expected.win_rate
    assert (result.low, result.high) == pytest.approx(expected.ci95, rel=1e-12)
    assert (result.prompts, result.seeds, result.one_run, result.sd) == (expected.prompts, 1, True, None)


def test_every_seed_counts_alike_and_has_its_own_win_rate():
    rng = np.random.default_rng(1)
    given = won(rng, 3, 60, 0.1, 0.2)
    given[1, 20:] = NAN  # of one seed most prompts are missing, which must not make it count less
    given[:, 5] = NAN
    result = over_seeds(given)
    assert result.by_seed == pytest.approx([mean_outcome(each).win_rate for each in given])
    assert result.mean == pytest.approx(np.mean(result.by_seed))
    assert result.sd == pytest.approx(np.std(result.by_seed, ddof=1))
    assert result.prompts == 59
    assert not result.one_run


def test_no_part_alone_would_be_wider():
    rng = np.random.default_rng(2)
    for i in range(24):
        seeds = 2 + i % 4
        given = won(rng, seeds, 30, (0, 0.05, 0.2)[i % 3], 0.2)
        result = over_seeds(given, resamples=500)
        low, high = mean_outcome(np.concatenate(list(given), axis=1), resamples=500).ci95
        assert result.low <= low + 1e-12
        assert result.high >= high - 1e-12
        half = student.ppf(0.975, seeds - 1) * result.sd / seeds**0.5
        assert result.low <= max(0, result.mean - half) + 1e-12
        assert result.high >= min(1, result.mean + half) - 1e-12


CASES = {
    "only prompts": (0.0, 0.2),
    "as much of seeds as of prompts": (0.03, 0.2),
    "seeds above all": (0.1, 0.1),
}


@pytest.mark.parametrize("repetitions", [250, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_the_truth(case, seeds, repetitions):
    between, shared = CASES[case]
    rng = np.random.default_rng(3)
    intervals = [over_seeds(won(rng, seeds, 100, between, shared), resamples=200, seed=i) for i in range(repetitions)]
    covered = np.mean([each.low <= 0.6 <= each.high for each in intervals])
    assert covered >= 0.945 - 2 * (0.945 * 0.055 / repetitions) ** 0.5  # as far as so many tell: 2,000, above 0.935
    if case == "only prompts" and seeds == 5:
        assert covered <= 0.985  # where seeds do not differ it is not much wider than it needs to be


def test_seeds_alone_or_prompts_alone_would_not_cover():
    """So the simulation can fail: each part's own interval falls short where the other matters."""
    rng = np.random.default_rng(4)
    seeds_cover, prompts_cover = 0, 0
    for i in range(100):
        few_prompts, unlike_seeds = won(rng, 5, 30, 0.0, 0.22), won(rng, 5, 100, 0.1, 0.1)
        alone = of_means([each.mean() for each in few_prompts])
        seeds_cover += alone.low <= 0.6 <= alone.high
        low, high = mean_outcome(np.concatenate(list(unlike_seeds), axis=1), resamples=200, seed=i).ci95
        prompts_cover += low <= 0.6 <= high
    assert seeds_cover < 85
    assert prompts_cover < 65


def test_values_without_bounds():
    rng = np.random.default_rng(5)
    rewards = rng.normal(2, 1, (3, 50, 2))
    result = over_seeds(rewards, bounds=None)
    assert result.low < 2 < result.high < 3
    moved = over_seeds(10 * rewards - 7, bounds=None)
    assert (moved.low, moved.high) == pytest.approx((10 * result.low - 7, 10 * result.high - 7))
    within = over_seeds(rewards, bounds=(-10, 10))
    assert (within.low, within.high) == pytest.approx((result.low, result.high), abs=1e-9)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_all_alike_is_no_certainty(seeds):
    for value in (0.0, 0.5, 1.0):
        result = over_seeds(np.full((seeds, 20, 2), value))
        assert result.mean == value
        assert 0 <= result.low <= value <= result.high <= 1
        assert result.high - result.low == pytest.approx(1 - 0.025 ** (1 / 20))
    unknown = over_seeds(np.full((seeds, 20), 3.0), bounds=None)
    assert (unknown.low, unknown.high) == (-inf, inf)


def test_two_seeds_that_differ_are_told_to_be_two():
    given = np.repeat([[1.0], [0.0]], 500, axis=1)  # one wins all, the other none
    result = over_seeds(given)
    assert (result.low, result.high) == (0, 1)
    apart = over_seeds([np.tile([1.0, 0.0], 250), np.tile([1.0, 1.0, 0.0, 0.0, 1.0], 100)])
    half = student.ppf(0.975, 1) * apart.sd / 2**0.5
    assert half == pytest.approx(0.635, abs=1e-3)
    assert (apart.low, apart.high) == (0, 1)


def test_one_prompt():
    result = over_seeds([[1.0], [0.0], [1.0]])
    assert result.mean == pytest.approx(2 / 3)
    assert (result.low, result.high) == (0, 1)


def test_sides():
    result = over_seeds(np.tile([0.6, 0.7], (1, 50)))
    assert [result.beyond(value) for value in (0.5, 0.65, 0.8, result.low, result.high)] == [1, 0, -1, 0, 0]


def test_means_of_seeds():
    result = of_means([1.0, 2.0, 3.0])
    assert (result.mean, result.prompts, result.by_seed) == (2.0, 0, (1.0, 2.0, 3.0))
    assert result.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert of_means([1.0]) is None
    assert of_means([]) is None
    alike = of_means([2.0, 2.0])
    assert (alike.mean, alike.low, alike.high) == (2.0, -inf, inf)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no seed"),
        ([[0.5, 1], [0.5]], "the same prompts"),
        ([[0.5, 1], [NAN, NAN]], "without|no value"),
        ([[0.5, 1.5]], "from 0 to 1"),
        ([[0.5, inf]], "infinite"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        over_seeds(values)


def test_means_that_are_none_are_refused():
    with pytest.raises(ValueError, match="finite"):
        of_means([1.0, NAN])
