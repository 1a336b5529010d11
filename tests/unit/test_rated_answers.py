"""A judge that rates single answers: means, intervals over questions, what was unreadable, and two judgings."""

import numpy as np
import pytest
from simulated_judges import rating_coverage

from orpo_ray.statistics.rated_answers import rated_answers

NAN = float("nan")


def of(ratings):
    """Of `(questions, turns)` or `(questions, turns, judgings)`, all asked in one round."""
    ratings = np.array(ratings, dtype=np.float64)
    ratings = ratings.reshape(len(ratings), 1, ratings.shape[1], -1)
    return ratings, np.ones(ratings.shape, bool)


def test_all_turns_count_alike_and_what_is_unreadable_is_left_out_and_counted():
    found = rated_answers(*of([[8, 6], [4, NAN], [9, 3], [NAN, NAN]]))
    assert found.score.mean == pytest.approx((8 + 6 + 4 + 9 + 3) / 5)
    assert (found.score.answers, found.score.questions) == (5, 3)
    assert [turn.mean for turn in found.turns] == [7, 4.5]
    assert (found.asked, found.unreadable) == ((4, 4), (1, 2))
    low, high = found.score.ci95
    assert 3.5 <= low < found.score.mean < high <= 9
    assert found.unknown == {"noise": "everything was judged once"}


def test_every_rating_counts_alike_and_two_of_an_answer_show_the_judges_noise():
    found = rated_answers(*of([[[8, 6], [5, 5]], [[9, NAN], [4, 3]]]))
    assert found.score.mean == pytest.approx((8 + 6 + 5 + 5 + 9 + 4 + 3) / 7)
    assert found.score.by_answer == pytest.approx((7 + 5 + 9 + 3.5) / 4)
    assert (found.score.ratings, found.score.answers, found.score.questions) == (7, 4, 2)
    noise = found.noise
    assert (noise.judgings, noise.answers, noise.in_all) == (2, 3, 3)
    assert noise.flips == pytest.approx(2 / 3)
    assert noise.sd == pytest.approx(np.sqrt((2 + 0 + 0.5) / 3))
    assert noise.means == pytest.approx((17 / 3, 14 / 3))
    assert noise.sd_of_means == pytest.approx(1 / np.sqrt(2))


def test_answers_that_were_judged_unequally_often_tell_noise_by_every_two_ratings():
    noise = rated_answers(*of([[[8, 6, 7], [5, 5, NAN]], [[9, NAN, NAN], [NAN, 4, 2]]])).noise
    assert (noise.judgings, noise.answers, noise.in_all) == (3, 3, 1)
    assert noise.sd == pytest.approx(np.sqrt((2 + 0 + 2) / (2 + 1 + 1)))
    assert noise.flips == pytest.approx((3 + 0 + 1) / (3 + 1 + 1))
    assert noise.means == (8, 6, 7) and noise.sd_by_chance == noise.sd
    partly = rated_answers(*of([[[8, 6, NAN]], [[NAN, 4, 4]]])).noise
    assert (partly.sd, partly.means, partly.sd_of_means, partly.sd_by_chance) == (1, (), None, None)


def test_a_question_is_the_unit_so_turns_that_are_alike_add_no_certainty():
    rng = np.random.default_rng(0)
    level = rng.integers(1, 11, (80, 1)).astype(float)
    once, twice = rated_answers(*of(level)), rated_answers(*of(np.repeat(level, 2, axis=1)))
    assert twice.score.ci95 == once.score.ci95
    apart = rated_answers(*of(rng.permuted(np.repeat(level, 2, axis=1), axis=0)))
    assert np.diff(apart.score.ci95) < 0.85 * np.diff(once.score.ci95)


def test_ratings_that_are_all_the_same_are_not_certain():
    low, high = rated_answers(*of([[10, 10]] * 20)).score.ci95
    assert (low, high) == (pytest.approx(10 - 9 * (1 - 0.025 ** (1 / 20))), 10)


def test_what_cannot_be_told_says_why():
    found = rated_answers(*of([[[8, 8], [NAN, NAN]], [[7, 8], [NAN, NAN]]]))
    assert (found.turns[1], found.unreadable) == (None, (0, 4))
    assert found.unknown == {"turn_2": "no rating could be read"}
    nothing = rated_answers(*of([[[8, NAN]], [[NAN, 7]]]))
    assert nothing.unknown == {"noise": "nothing could be read twice"}
    assert nothing.score.mean == 7.5


@pytest.mark.parametrize("rating", [0.0, 11.0, -1.0, float("inf")])
def test_ratings_beyond_the_scale_are_refused(rating):
    with pytest.raises(ValueError, match="from 1 to 10"):
        rated_answers(*of([[5, rating]]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="questions, rounds, turns, judgings"):
        rated_answers(np.ones((3, 2)), np.ones((3, 2), bool))


def test_intervals_hold_the_truth_and_noise_is_what_two_judgings_differ_by():
    found = rating_coverage(80, simulations=500)
    assert found["covered"] >= 0.93
    assert found["sd_by_chance"] == pytest.approx(found["sd_between_judgings"], rel=0.1)
