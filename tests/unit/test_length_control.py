"""The win-rate at equal lengths: simulated judges, known fits, what cannot be told, and its interval."""

import numpy as np
import pytest
from scipy.special import expit
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from orpo_ray.statistics.winrate import LengthControl, length_control, length_controlled

NAN = float("nan")


def lengths_and_outcomes(judge, prompts, seed, longer=0.75):
    """Lengths in tokens of A and B, A the longer on average, and a judge's `judge(difference / sd, rng)`."""
    rng = np.random.default_rng(seed)
    a, b = rng.gamma(4, 30 * (1 + longer), (prompts, 2)).round(), rng.gamma(4, 30, (prompts, 2)).round()
    return judge((a - b) / (a - b).std(), rng), a, b


JUDGES = {
    "a probability": lambda d, rng: expit(3 * d),
    "soft": lambda d, rng: (rng.random(d.shape) < expit(3 * d)).astype(float),
    "soft, of the model's own form": lambda d, rng: (rng.random(d.shape) < expit(4 * np.tanh(d))).astype(float),
    "hard, one in fifty wrong": lambda d, rng: (1 + np.sign(d) * np.where(rng.random(d.shape) < 0.02, -1, 1)) / 2,
    "half asleep": lambda d, rng: np.where(rng.random(d.shape) < 0.9, (1 + np.sign(d)) / 2, 0.5),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_judge_that_only_likes_length_is_seen_through(judge):
    for seed in range(3):
        won, a, b = lengths_and_outcomes(JUDGES[judge], 20_000, seed)
        assert 0.65 <= won.mean() <= 0.8
        assert length_controlled(won, a, b) == pytest.approx(0.5, abs=0.02)


def test_a_judge_that_likes_short_answers_is_seen_through():
    won, a, b = lengths_and_outcomes(lambda d, rng: (rng.random(d.shape) < expit(-3 * d)).astype(float), 20_000, 0)
    assert won.mean() < 0.35
    assert length_controlled(won, a, b) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("strength", [-1.0, 0.8])
def test_a_real_preference_is_kept(strength):
    won, a, b = lengths_and_outcomes(
        lambda d, rng: (rng.random(d.shape) < expit(strength + 1.5 * np.tanh(d))).astype(float), 20_000, 5
    )
    assert length_controlled(won, a, b) == pytest.approx(expit(strength), abs=0.015)
    assert won.mean() > expit(strength) + 0.04


def test_the_penalty_hardly_shrinks_a_preference_that_lengths_do_not_hide():
    # 60 comparisons of 30 prompts, where it would show the most; against the fit of the model without any.
    won, a, b = lengths_and_outcomes(lambda d, rng: (rng.random(d.shape) < expit(1 + d)).astype(float), 30, 1)
    x = np.tanh((a - b) / (a - b).std(ddof=1)).ravel()
    plain = GLM(won.ravel(), np.column_stack([np.ones_like(x), x]), family=Binomial()).fit().params
    assert length_controlled(won, a, b) == pytest.approx(expit(plain[0]), abs=0.02)


def test_the_fit_is_the_penalised_likelihoods_best():
    rng = np.random.default_rng(8)
    for kind in range(12):
        a, b = rng.gamma(3, 300, (40, 2)), rng.gamma(3, 200 + 40 * kind, (40, 2))
        won = [rng.random((40, 2)), rng.random((40, 2)) < 0.9, expit((a - b) / 300) > rng.random((40, 2))][
            kind % 3
        ] * 1.0
        x = np.tanh((a - b) / (a - b).std(ddof=1)).ravel()
        weights = np.append(np.ones(80), 40 / 16 * 2)  # a sixteenth of 40 prompts, at two comparisons each
        design = np.column_stack([np.append(np.ones(80), 0.0), np.append(x, 1.0)])
        fit = GLM(np.append(won, 0.5), design, family=Binomial(), var_weights=weights).fit(tol=1e-12, maxiter=500)
        assert length_controlled(won, a, b) == pytest.approx(expit(fit.params[0]), abs=1e-5), kind


def equal_models(prompts: int, seed: int, wordier: float):
    """Two equal models before a judge with some liking for length: outcomes, characters, and tokens of B's own kind."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.3, (prompts, 1))  # some prompts want longer answers
    characters = np.exp(common + rng.normal(6.5, 0.5, (prompts, 2))).round()
    difference = characters[:, 0] - characters[:, 1]
    won = (rng.random(prompts) < expit(1.5 * np.tanh(difference / difference.std()))).astype(float)
    return won, *characters.T, characters[:, 0] / 4, characters[:, 1] / 4 * wordier


def test_equal_models_are_even_whatever_their_tokenizers():
    """B's tokenizer takes 20 % more tokens, which says nothing of its answers."""
    by_characters, by_tokens = [], []
    for seed in range(12):
        won, characters_a, characters_b, tokens_a, tokens_b = equal_models(4000, seed, 1.2)
        by_characters.append(length_controlled(won, characters_a, characters_b))
        by_tokens.append(length_controlled(won, tokens_a, tokens_b))
    assert np.abs(np.array(by_characters) - 0.5).max() < 0.02
    assert np.mean(by_tokens) > 0.53


@pytest.mark.parametrize("longer", [1.0, -1.0])
def test_one_prompt_among_a_thousand_moves_it_little_or_it_cannot_be_told(longer):
    """Exceptions to a rule of length are added one by one: to "A is always the longer", to "the longer wins"."""
    size = np.random.default_rng(0).gamma(3, 200, 1000).round() + 1
    place = np.arange(1000)
    mostly_a = np.where(place % 4 == 0, -size, size)
    kinds = {
        "A is the longer": lambda k: (np.random.default_rng(1).random(1000) < 0.8, np.where(place < k, -size, size)),
        "the longer wins": lambda k: ((mostly_a > 0) != (place < k), mostly_a),
        "or they are equal": lambda k: (
            np.where(place < 3, place == 0, (mostly_a > 0) != (place < 3 + k)), np.where(place < 3, 0, mostly_a),
        ),
    }  # fmt: skip
    for name, kind in kinds.items():
        found = []
        for exceptions in range(7):
            won, difference = kind(exceptions)
            found.append(length_control(won, longer * difference, np.zeros(1000), resamples=20))
        told = [control.win_rate for control in found]
        assert told[:3] == [None] * 3 and found[0].unknown and found[0].ci95 is None, name
        known = told[3:]
        assert np.abs(np.diff(known)).max() < 0.02, (name, told)


@pytest.mark.parametrize("sign", [1, -1])
def test_where_length_decides_all_it_cannot_be_told(sign):
    difference = np.array([-40.0, -30, -20, 1, 2, 3, 50, 60])
    found = length_control(sign * difference > 0, difference, np.zeros(8))
    which = "longer" if sign > 0 else "shorter"
    assert found.unknown == f"the {which} response won in all but 0 of 8 prompts with unlike lengths, whoever gave it"
    assert found.win_rate is found.ci95 is None
    assert found.reverse() == found
    # Where half are of equal length, these tell it.
    difference, won = np.append(difference, [0.0] * 8), np.append(sign * difference > 0, [1.0] * 6 + [0, 0])
    assert 0.55 < length_controlled(won, difference, np.zeros(16)) < 0.8


def test_nearly_separated_outcomes_stay_finite_and_sane():
    # A wins as soon as it is no more than ten characters the shorter: at equal length it wins.
    difference = np.arange(-50, 51, dtype=float)
    controlled = length_control(difference > -10, difference, np.zeros(101))
    assert 0.7 < controlled.win_rate < 1
    assert controlled.ci95[0] > 0.5
    assert length_controlled(difference >= 10, difference, np.zeros(101)) == pytest.approx(
        1 - controlled.win_rate, abs=1e-6
    )


def test_where_lengths_say_nothing_the_win_rate_stays():
    won = np.array([[1.0, 0.0], [1.0, 0.5]])
    assert length_controlled(won, np.full((2, 2), 7.0), np.full((2, 2), 7.0)) == 0.625
    lengths = np.arange(12.0).reshape(6, 2)
    found = length_control(np.ones((6, 2)), lengths, lengths[::-1])
    assert found.win_rate == 1.0
    assert found.ci95 == pytest.approx((0.025 ** (1 / 6), 1.0))  # as of the win-rate itself


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([5, 6, 7], [4, 4, 4], "one model gave the longer response to all 3 prompts"),
        ([3, 2, 1], [4, 4, 4], "one model gave the longer response to all 3 prompts"),
        ([NAN, 1, 2], [4, NAN, NAN], "no comparison has both lengths"),
        ([[5, 3], [5, 3], [5, 5]], [[4, 4]] * 3, "one model gave the longer response to all but 1 of 3 prompts"),
    ],
)
def test_no_control_without_overlap_of_lengths(a, b, said):
    won = np.zeros(np.shape(a)) + np.array([1.0, 0.0])[: np.ndim(a)].mean()
    assert length_control(won, a, b) == LengthControl(None, None, said)
    assert length_controlled(won, a, b) is None


def test_comparisons_without_lengths_are_left_out():
    won, a, b = lengths_and_outcomes(JUDGES["soft"], 200, 0)
    padded = [np.concatenate([x, np.full((1, 2), fill)]) for x, fill in ((won, 1.0), (a, NAN), (b, 3.0))]
    assert length_control(*padded, resamples=50) == length_control(won, a, b, resamples=50)


def test_repeating_every_round_changes_neither_length_control_nor_its_interval():
    won, a, b = (each[:, :1] for each in lengths_and_outcomes(JUDGES["soft"], 150, 3))
    once, thrice = length_control(won, a, b), length_control(*(np.tile(each, 3) for each in (won, a, b)))
    # The sample's deviation, by which lengths are scaled, has one n - 1 for all.
    assert thrice.win_rate == pytest.approx(once.win_rate, abs=2e-3)
    assert thrice.ci95 == pytest.approx(once.ci95, abs=2e-3)


@pytest.mark.parametrize(("prompts", "rounds", "longer"), [(60, 3, 0.2), (400, 1, 0.75)])
def test_the_interval_at_equal_lengths_covers_its_bootstrap_truth(prompts, rounds, longer):
    """Samples of a population of prompts hold the population's own number, by the same method, in 95 % of cases."""
    judge = lambda d, rng: (rng.random(d.shape) < expit(0.7 + 1.5 * np.tanh(d))).astype(float)  # noqa: E731
    population = [each[:, :rounds] for each in lengths_and_outcomes(judge, 20_000, 11, longer)]
    population = [np.concatenate([each] + [each[:, :1]] * (rounds - each.shape[1]), axis=1) for each in population]
    rng = np.random.default_rng(5)
    truth = np.mean([length_controlled(*(each[rows] for each in population)) for rows in
                     rng.integers(20_000, size=(200, prompts))])  # fmt: skip
    covered = 0
    for seed in range(200):
        rows = rng.integers(20_000, size=prompts)
        low, high = length_control(*(each[rows] for each in population), resamples=250, seed=seed).ci95
        covered += low <= truth <= high
    assert 0.91 <= covered / 200 <= 0.985


def test_lengths_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="outcomes have shape"):
        length_controlled([1, 0], [[1, 2]], [[2, 1]])
