"""Win-rates: counts, interval, test and control for length, against known answers and simulated judges."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, kstest, permutation_test
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from orpo_ray.evaluation.sign_flip import sign_flip_test
from orpo_ray.evaluation.winrate import (
    TIE,
    LengthControl,
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


# Control for length


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
        ([5, 6, 7], [4, 4, 4], "one model gave the longer response to all but 0 of 3 prompts"),
        ([3, 2, 1], [4, 4, 4], "one model gave the longer response to all but 0 of 3 prompts"),
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
