"""Bradley-Terry ratings: closed forms, known strengths, intervals."""

import numpy as np
import pytest
from scipy.stats import beta

from orpo_ray.statistics.ratings import bradley_terry, ratings_of_outcomes

NAN = float("nan")


def gumbel_scores(rng: np.random.Generator, ratings: dict[str, float], prompts: int, rounds: int = 1):
    """Scores whose differences are logistic, so that the higher wins with exactly Bradley-Terry's probability."""
    return {m: rng.gumbel(r * np.log(10) / 400, 1.0, (prompts, rounds)) for m, r in ratings.items()}


def test_two_models_are_their_log_odds_apart():
    a = np.repeat([1.0, 0.0, -1.0], [60, 10, 30])[:, None]
    first, second = bradley_terry({"b": np.zeros((100, 1)), "a": a}, resamples=5)
    assert (first.model, second.model) == ("a", "b")
    assert first.rating - second.rating == pytest.approx(400 * np.log10(65.5 / 35.5), abs=1e-6)
    assert first.rating + second.rating == pytest.approx(0, abs=1e-9)


def test_probabilities_are_rated_as_that_much_of_a_win():
    won = {("b", "a"): np.full((100, 1), 0.35), ("a", "c"): np.full((100, 1), 0.5)}
    rated = {r.model: r.rating for r in ratings_of_outcomes(won, resamples=5)}
    assert rated["a"] - rated["b"] == pytest.approx(400 * np.log10(65.5 / 35.5), abs=8)  # c's halves pull a little
    assert ratings_of_outcomes({("a", "b"): 1 - won["b", "a"], ("a", "c"): won["a", "c"]}, resamples=5) == (
        ratings_of_outcomes(won, resamples=5)
    )
    with pytest.raises(ValueError, match="in both directions"):
        ratings_of_outcomes(won | {("a", "b"): won["a", "c"]})


def test_known_strengths_are_recovered():
    truth = {"a": 150.0, "b": 60.0, "c": 0.0, "d": -60.0, "e": -150.0}
    rated = bradley_terry(gumbel_scores(np.random.default_rng(0), truth, 6000, 3), resamples=100)
    assert [r.model for r in rated] == list("abcde")
    assert sum(r.rating for r in rated) == pytest.approx(0, abs=1e-9)
    for r in rated:
        assert r.rating == pytest.approx(truth[r.model], abs=6)
        low, high = r.ci95
        assert low < r.rating < high
        assert 2 < high - low < 20


def test_models_that_never_met_are_compared_through_a_third():
    truth = {"a": 100.0, "b": 0.0, "c": -100.0}
    scores = gumbel_scores(np.random.default_rng(1), truth, 20_000)
    scores["a"][:10_000], scores["c"][10_000:] = NAN, NAN
    rated = {r.model: r.rating for r in bradley_terry(scores, resamples=5)}
    assert rated["a"] - rated["c"] == pytest.approx(200, abs=15)


def test_with_two_models_the_interval_is_jeffreys():
    a = np.repeat([1.0, -1.0], [40, 20])[:, None]
    best, _ = bradley_terry({"a": a, "b": np.zeros((60, 1))}, resamples=4000)
    p = beta.ppf([0.025, 0.975], 40.5, 20.5)
    assert best.ci95 == pytest.approx(200 * np.log10(p / (1 - p)), abs=4)


def test_a_model_that_always_wins_is_finite_and_uncertain():
    scores = {"best": np.full((50, 1), 2.0), "mid": np.full((50, 1), 1.0), "worst": np.zeros((50, 1))}
    best, mid, worst = bradley_terry(scores)
    assert [r.model for r in (best, mid, worst)] == ["best", "mid", "worst"]
    assert 400 < best.rating < 1500
    assert mid.rating == pytest.approx(0, abs=1e-6)
    assert best.ci95[0] > mid.ci95[1]
    assert best.ci95[1] - best.ci95[0] > 300
    only, _ = bradley_terry({"a": np.ones((1, 1)), "b": np.zeros((1, 1))})
    assert only.ci95[0] < 0 < only.ci95[1]


@pytest.mark.parametrize(
    ("seeds", "low", "high"), [(20, 0.85, 1), pytest.param(60, 0.89, 0.99, marks=pytest.mark.long)]
)
def test_interval_covers_the_truth_with_rounds_that_repeat_each_other(seeds, low, high):
    # Three rounds that are copies of one: counting them as independent would cover in three of four runs.
    truth, covered = {"a": 80.0, "b": 0.0, "c": -80.0}, 0
    for seed in range(seeds):
        scores = gumbel_scores(np.random.default_rng(seed), truth, 120)
        rated = bradley_terry({m: np.tile(s, 3) for m, s in scores.items()}, resamples=100, seed=seed)
        covered += sum(r.ci95[0] <= truth[r.model] <= r.ci95[1] for r in rated)
    assert low <= covered / (3 * seeds) <= high, covered / (3 * seeds)


def test_neither_the_order_of_models_nor_a_second_call_changes_anything():
    scores = gumbel_scores(np.random.default_rng(2), {"a": 30.0, "b": 0.0, "c": -30.0}, 50)
    assert bradley_terry(scores, resamples=20) == bradley_terry(dict(reversed(scores.items())), resamples=20)
    assert bradley_terry(scores, resamples=20) != bradley_terry(scores, resamples=20, seed=1)


def test_models_without_a_comparison_are_left_out():
    scores = {"a": np.array([[1.0]]), "b": np.array([[0.0]]), "silent": np.array([[NAN]])}
    assert [r.model for r in bradley_terry(scores, resamples=5)] == ["a", "b"]
    assert bradley_terry({"a": np.array([[1.0]]), "silent": np.array([[NAN]])}) == []
    assert bradley_terry({"a": np.array([[1.0]])}) == []


@pytest.mark.parametrize("other", [np.ones((3, 1)), np.ones((2, 3)), np.array([[1.0], [np.inf]])])
def test_impossible_scores_are_refused(other):
    with pytest.raises(ValueError):
        bradley_terry({"a": np.ones((2, 1)), "b": other})
