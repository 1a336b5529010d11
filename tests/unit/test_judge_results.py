"""From what judges said in the places of answers to outcomes of every two models."""

from __future__ import annotations

import numpy as np

from orpo_ray.evaluation.judge_results import judged_outcomes
from orpo_ray.evaluation.judged import Judged, judged
from orpo_ray.judging.places import Answered, Place
from orpo_ray.judging.verdict import Verdict


def rated(ratings: dict[tuple[str, int, int], float | None], rounds: int, turns: int) -> Judged:
    """Of one prompt, by model, round and turn."""
    places = [Place(model, None, 0, round, turn, None, 0) for model, round, turn in ratings]
    verdicts = [Verdict(str(place), None, rating, "") for place, rating in zip(places, ratings.values(), strict=True)]
    of_model = {model: max(round for name, round, _ in ratings if name == model) + 1 for model, _, _ in ratings}
    answers: dict[str, list[list[list[str] | None]]] = {
        model: [[["said"] * turns for _ in range(count)]] for model, count in of_model.items()
    }
    answered = Answered([["asked"] * turns], answers, [None])
    assert answered.rounds == rounds
    return judged([(place, False) for place in places], {"judge": verdicts}, answered, 1)


def test_an_answer_that_is_there_once_is_compared_with_every_round_by_its_rating() -> None:
    found = rated({("given", 0, 0): 5.0, **{("ours", i, 0): 4.0 + i for i in range(3)}}, rounds=3, turns=1)
    won = judged_outcomes(found, ["given", "ours"])["judge"]["given", "ours"]
    np.testing.assert_array_equal(won, [[1.0, 0.5, 0.0]])


def test_a_turn_that_one_has_no_rating_of_is_left_out_of_both() -> None:
    ratings = {("a", 0, 0): 8.0, ("a", 0, 1): None, ("b", 0, 0): 9.0, ("b", 0, 1): 3.0}
    won = judged_outcomes(rated(ratings, rounds=1, turns=2), ["a", "b"])["judge"]["a", "b"]
    np.testing.assert_array_equal(won, [[0.0]])
