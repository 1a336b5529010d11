"""A judge of pairs: win-rate, position bias, consistency and noise, against simulated judges whose truth is known."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_judges import Judge, coverage

from orpo_ray.statistics.agreement import agreement_of_outcomes
from orpo_ray.statistics.judged_pairs import (
    FEWEST,
    Verdicts,
    consistency,
    judged_pair,
    outcomes_of_verdicts,
    position_bias,
)
from orpo_ray.statistics.winrate import mean_outcome

NAN = float("nan")


def verdicts(first, asked=None):
    """From `first (prompts, 2)` or `(prompts, 2, judgings)` of one round; asked everywhere unless said otherwise."""
    first = np.array(first, dtype=np.float64)
    first = first.reshape(len(first), 1, 2, -1)
    return Verdicts(first, np.ones(first.shape, bool) if asked is None else np.array(asked).reshape(first.shape))


def swapped(given):
    """The same verdicts with the models' names changed: what A's order was is B's."""
    return Verdicts(given.first[:, :, ::-1], given.asked[:, :, ::-1])


# Counted by hand


def test_both_orders_of_four_prompts():
    found = judged_pair(verdicts([[0.9, 0.2], [0.8, 0.8], [0.3, 0.6], [0.5, 0.5]]))
    np.testing.assert_allclose(found.win_rate.rounds, [np.mean([0.85, 0.5, 0.35, 0.5])])
    assert (found.win_rate.wins, found.win_rate.ties, found.win_rate.losses) == (1, 2, 1)
    assert found.position_bias.bias == pytest.approx(np.mean([0.1, 0.6, -0.1, 0.0]))
    assert found.position_bias.both_orders
    alike = found.consistency  # A, then B against itself, then B, then two ties
    assert (alike.consistent, alike.first, alike.second, alike.comparisons) == (0.75, 0.25, 0.0, 4)
    assert (found.asked, found.unreadable, found.left_out) == ((4, 4), (0, 0), 0)
    assert found.noise is None
    assert found.unknown == {"noise": "everything was judged once"}


def test_what_could_not_be_read_in_one_of_two_orders_is_left_out_and_counted():
    found = judged_pair(verdicts([[1, NAN], [NAN, 1], [NAN, NAN], [1, 0], [0, 1]]))
    assert (found.asked, found.unreadable, found.left_out) == ((5, 5), (2, 2), 3)
    assert (found.win_rate.n, found.win_rate.win_rate) == (2, 0.5)
    assert found.consistency.comparisons == 2
    assert found.position_bias.prompts == 2


def test_several_judgings_of_an_order_count_as_its_mean():
    found = judged_pair(verdicts([[[1, 1, 0], [0, NAN, 0]], [[1, 1, 1], [1, 0, 0]]]))
    assert found.win_rate.win_rate == pytest.approx(np.mean([np.mean([2 / 3, 1]), np.mean([1, 2 / 3])]))
    noise = found.noise  # of A's outcomes 1 1 0, 1 1 1 and 0 1 1, and 1 - 1 in B's first order of the first prompt
    assert (noise.judgings, noise.answers, noise.in_all) == (3, 4, 3)
    assert noise.flips == pytest.approx((2 + 0 + 2 + 0) / (3 + 3 + 3 + 1))
    assert noise.sd == pytest.approx(np.sqrt((2 / 3 + 0 + 2 / 3 + 0) / (2 + 2 + 2 + 1)))
    assert noise.means == pytest.approx((2 / 3, 1, 2 / 3))
    assert noise.sd_of_means == pytest.approx(np.std([2 / 3, 1, 2 / 3], ddof=1))
    assert noise.sd_by_chance == pytest.approx(noise.sd / np.sqrt(3))


def test_an_outcome_that_nobody_was_asked_for_counts_in_the_win_rate_alone():
    same = [[0.5, 0.5]] * 6
    found = judged_pair(verdicts([[1, 1]] * 4 + same, [[True, True]] * 4 + [[False, False]] * 6))
    assert (found.win_rate.ties, found.win_rate.prompts) == (10, 10)
    assert (found.asked, found.left_out) == ((4, 4), 0)
    assert (found.position_bias.bias, found.position_bias.prompts, found.consistency.comparisons) == (1.0, 4, 4)


def test_a_tie_in_one_order_is_neither_consistent_nor_for_a_place():
    alike = consistency(verdicts([[0.5, 0], [1, 0.5]]))
    assert (alike.consistent, alike.first, alike.second) == (0.0, 0.0, 0.0)


def test_what_was_not_judged_is_left_out_and_counted_apart_from_what_could_not_be_read():
    """In whatever order: the other one alone would hold what its place is worth."""
    given = verdicts([[1, NAN], [NAN, 1], [NAN, NAN], [1, 0]])
    long = np.array([[False, True], [False, False], [True, True], [False, False]]).reshape(given.first.shape)
    found = judged_pair(Verdicts(given.first, given.asked, long))
    assert (found.asked, found.unreadable, found.unjudged, found.left_out) == ((4, 4), (1, 0), (1, 2), 3)
    assert (found.win_rate.n, found.win_rate.win_rate) == (1, 1.0)
    for first, asked in ((given.first, ~long), (np.ones_like(given.first), given.asked)):
        with pytest.raises(ValueError, match="neither a verdict where nothing was judged, nor one"):
            Verdicts(first, asked, long)


@pytest.mark.parametrize(
    ("first", "asked", "why"),
    [
        (np.zeros((2, 1, 2)), np.ones((2, 1, 2), bool), "prompts, rounds, 2, judgings"),
        (np.zeros((2, 1, 1, 1)), np.ones((2, 1, 1, 1), bool), "prompts, rounds, 2, judgings"),
        (np.zeros((2, 1, 2, 1)), np.ones((1, 1, 2, 1), bool), "prompts, rounds, 2, judgings"),
        (np.full((1, 1, 2, 1), 1.1), np.ones((1, 1, 2, 1), bool), "from 0 to 1"),
        (np.full((1, 1, 2, 1), -np.inf), np.ones((1, 1, 2, 1), bool), "from 0 to 1"),
    ],
)
def test_what_is_no_verdict_is_refused(first, asked, why):
    with pytest.raises(ValueError, match=why):
        Verdicts(first, asked)


# What must hold of any verdicts


@st.composite
def any_verdicts(draw, most=40):
    """Drawn by a seed: hundreds of numbers that are each drawn by hypothesis take minutes."""
    shape = (draw(st.integers(1, most)), draw(st.integers(1, 2)), 2, draw(st.integers(1, 2)))
    design = draw(st.sampled_from(["both orders", "one of each", "A first", "some of each"]))
    unreadable = draw(st.sampled_from([0.0, 0.1, 0.8]))
    kinds = draw(st.sampled_from([[0, 1], [0, 0.5, 1], [0.1, 0.3, 0.5, 0.7, 0.9], [0.7]]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    asked = np.ones(shape, bool)
    if design == "one of each":
        asked &= rng.integers(2, size=(*shape[:2], 1, 1)) == np.arange(2)[:, None]
    elif design == "A first":
        asked[:, :, 1] = False
    elif design == "some of each":
        asked &= rng.random(shape) < 0.7
    read = asked & (rng.random(shape) >= unreadable)
    return Verdicts(np.where(read, rng.choice(kinds, shape), NAN), asked)


@settings(max_examples=60)
@given(any_verdicts())
def test_changing_the_models_names_mirrors_what_is_of_them_and_leaves_what_is_of_the_judge(given):
    found, other = (judged_pair(each, resamples=50) for each in (given, swapped(given)))
    assert other.unknown == found.unknown
    assert (other.asked, other.unreadable, other.left_out) == (
        found.asked[::-1], found.unreadable[::-1], found.left_out,
    )  # fmt: skip
    if found.win_rate is not None:
        for name, value in asdict(found.win_rate.reverse()).items():
            assert value == pytest.approx(getattr(other.win_rate, name), abs=1e-12), name
    for name in ("position_bias", "consistency"):
        mine, its = getattr(found, name), getattr(other, name)
        assert (mine is None) == (its is None)
        for field, value in asdict(mine).items() if mine else ():
            assert value == pytest.approx(getattr(its, field), abs=1e-12), f"{name}.{field}"
    if found.noise is not None:
        mirrored = replace(found.noise, means=tuple(1 - mean for mean in found.noise.means))
        for field, value in asdict(mirrored).items():
            assert value == pytest.approx(getattr(other.noise, field), abs=1e-12), field


@settings(max_examples=60)
@given(any_verdicts())
def test_every_number_is_there_or_says_why_not_and_lies_where_it_can(given):
    found = judged_pair(given, resamples=50)
    numbers = {name: getattr(found, name) for name in ("win_rate", "position_bias", "consistency", "noise")}
    assert {name for name, number in numbers.items() if number is None} == set(found.unknown)
    if found.position_bias is not None:
        low, high = found.position_bias.ci95
        assert -1 <= low <= found.position_bias.bias + 1e-12
        assert found.position_bias.bias - 1e-12 <= high <= 1
    if found.consistency is not None:
        alike = found.consistency
        assert alike.consistent + alike.first + alike.second <= 1 + 1e-12
    if found.noise is not None:
        assert 0 <= found.noise.flips <= 1


@settings(max_examples=60)
@given(any_verdicts())
def test_what_is_unreadable_never_counts_as_won(given):
    """Taken out altogether, it changes neither outcome nor bias; only what was left beside it may go with it."""
    won, given_first = outcomes_of_verdicts(given), given.first
    gone = given.asked & np.isnan(given_first)
    without = outcomes_of_verdicts(Verdicts(given_first, given.asked & ~gone))
    both = ~np.isnan(won)
    np.testing.assert_array_equal(won[both], without[both])
    read = ~np.isnan(given_first).all(axis=(2, 3))
    assert not both[~read].any()
    assert np.isnan(without[~read]).all()


@pytest.mark.parametrize("probability", [0.6, 0.75, 1.0])
@pytest.mark.parametrize("prompts", [1, 7, 100])
def test_a_judge_of_places_alone_finds_no_winner(probability, prompts):
    found = judged_pair(verdicts(np.full((prompts, 2), probability)))
    assert (found.win_rate.win_rate, found.win_rate.ties, found.win_rate.p_value) == (0.5, prompts, 1.0)
    assert found.position_bias.bias == pytest.approx(2 * probability - 1)
    assert found.position_bias.ci95[0] <= found.position_bias.bias <= found.position_bias.ci95[1]
    assert (found.consistency.consistent, found.consistency.first) == (0.0, 1.0)


def test_a_judge_of_places_alone_is_seen_through_by_single_orders_too():
    rng = np.random.default_rng(1)
    drawn = np.eye(2, dtype=bool)[rng.integers(2, size=400)]
    found = judged_pair(verdicts(np.where(drawn, 0.8, NAN), drawn))
    assert found.position_bias.bias == pytest.approx(0.6)
    assert not found.position_bias.both_orders
    low, high = found.win_rate.ci95
    assert low < 0.5 < high
    assert found.unknown["consistency"] == "no prompt was shown in both orders"


# What cannot be told


def test_one_order_alone_says_nothing_of_places_and_its_win_rate_is_said_to_hold_them():
    found = judged_pair(verdicts([[1, NAN]] * 50, [[True, False]] * 50))
    assert found.win_rate.win_rate == 1.0
    assert found.position_bias is None
    assert found.consistency is None
    assert found.unknown == {
        "position_bias": "the same model was always shown first, so what that is worth is in its win-rate",
        "consistency": "no prompt was shown in both orders",
        "noise": "everything was judged once",
    }


def test_few_prompts_in_one_of_two_orders_tell_nothing_of_places():
    drawn = np.array([[True, False]] * 90 + [[False, True]] * FEWEST)
    first = np.where(drawn, 0.7, NAN)
    assert position_bias(verdicts(first, drawn)).bias == pytest.approx(0.4)
    first[-1] = NAN
    assert position_bias(verdicts(first, drawn)) == (
        "each prompt was shown in one order, and only 9 could be read in one of the two"
    )


@pytest.mark.parametrize(
    ("first", "asked", "why"),
    [
        ([[NAN, NAN]] * 3, True, "no prompt could be read in every order that it was shown in"),
        ([[NAN, 1.0]] * 3, True, "no prompt could be read in every order that it was shown in"),
        ([[NAN, NAN]] * 3, False, "nothing was asked"),
    ],
)
def test_without_a_verdict_there_is_no_win_rate(first, asked, why):
    found = judged_pair(verdicts(first, np.full((3, 2), asked)))
    assert found.unknown["win_rate"] == why
    assert (found.win_rate, found.position_bias, found.consistency, found.noise) == (None,) * 4


# Simulated judges


@pytest.mark.parametrize(
    ("judge", "prompts", "design"),
    [
        (Judge(words=True, place=1.0), 100, {}),
        (Judge(preference=1.0, spread=2.0), 100, {"orders": "by_prompt"}),
        (Judge(words=True, place=1.0), 80, {"orders": "by_prompt"}),
        (Judge(spread=3.0), 100, {"rounds": 3, "orders": "by_round"}),
        pytest.param(Judge(words=True), 805, {"orders": "by_prompt"}, marks=pytest.mark.long),
        pytest.param(Judge(unreadable=(0.1, 0.2)), 200, {"rounds": 3, "judgings": 2}, marks=pytest.mark.long),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(judge, prompts, design):
    """More judges, designs and numbers of prompts: `benchmarks/judge_intervals.py`."""
    found = coverage(judge, prompts, simulations=500, **design)
    for name, row in found.items():
        assert 0.93 <= row["covered"] <= 0.98, (name, row)
        assert row["intervals"] == 500
        assert abs(row["mean_error"]) < row["mean_width"] / 20, (name, row)
    assert {"win_rate", "position_bias"} <= found.keys()


def test_both_orders_tell_places_better_than_one_of_each_prompt():
    judge, rng = Judge(), np.random.default_rng(3)
    both, one = (
        position_bias(judge.verdicts(rng, 400, orders=orders), resamples=500) for orders in ("both", "by_prompt")
    )
    assert np.diff(both.ci95) < 0.6 * np.diff(one.ci95)


def test_a_place_changes_no_win_rate_in_both_orders():
    rates = [
        mean_outcome(outcomes_of_verdicts(Judge(place=place).verdicts(np.random.default_rng(1), 2000)), resamples=2)
        for place in (-0.5, 0.0, 0.5)
    ]
    assert rates[0].win_rate == pytest.approx(rates[2].win_rate, abs=0.01)
    assert rates[0].win_rate == pytest.approx(rates[1].win_rate, abs=0.02)


def test_noise_between_judgings_is_what_the_win_rates_of_judgings_differ_by():
    judge, rng = Judge(words=True), np.random.default_rng(5)
    noises = [judged_pair(judge.verdicts(rng, 100, judgings=2), resamples=2).noise for _ in range(200)]
    seen = np.sqrt(np.mean([noise.sd_of_means**2 for noise in noises]))
    assert np.mean([noise.sd_by_chance for noise in noises]) == pytest.approx(seen, rel=0.12)
    steady = judged_pair(verdicts(np.repeat(rng.random((50, 2, 1)), 2, axis=2)), resamples=2).noise
    assert (steady.flips, steady.sd, steady.sd_of_means) == (0, 0, 0)


# Between judges


def test_judges_agree_by_what_they_say_of_both_orders():
    """Two judges of one opinion, one of them with a place of its own; a third that knows nothing but places."""
    rng = np.random.default_rng(2)
    sure = Judge(spread=8.0, place=0.0, noise=0.0).verdicts(rng, 300)
    leaning = Verdicts(np.clip(sure.first + 0.1, 0, 1), sure.asked)
    places = Verdicts(np.full_like(sure.first, 0.9), sure.asked)
    outcomes = [{("a", "b"): outcomes_of_verdicts(each)} for each in (sure, leaning, places)]
    assert agreement_of_outcomes(outcomes[0], outcomes[1]).kappa > 0.95
    apart = agreement_of_outcomes(outcomes[0], outcomes[2])
    assert (apart.kappa, apart.ties) == (0.0, (0, 300))
