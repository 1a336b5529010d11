"""From what judges said in the places of answers to outcomes of every two models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orpo_ray.evaluation.comparisons import pairs
from orpo_ray.evaluation.judge_results import judge_numbers, judged_outcomes, of_what_was_judged
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


def outcomes(found: Judged, models: list[str]) -> Any:
    return judged_outcomes(found, of_what_was_judged(found, models))["judge"][models[0], models[1]]


def test_an_answer_that_is_there_once_is_compared_with_every_round_by_its_rating() -> None:
    found = rated({("given", 0, 1): 5.0, **{("ours", i, 1): 4.0 + i for i in range(3)}}, rounds=3, turns=1)
    won = outcomes(found, ["given", "ours"])
    np.testing.assert_array_equal(won, [[1.0, 0.5, 0.0]])


def test_a_turn_that_one_has_no_rating_of_is_left_out_of_both() -> None:
    ratings = {("a", 0, 1): 8.0, ("a", 0, 2): None, ("b", 0, 1): 9.0, ("b", 0, 2): 3.0}
    won = outcomes(rated(ratings, rounds=1, turns=2), ["a", "b"])
    np.testing.assert_array_equal(won, [[0.0]])


def compared(said: dict[tuple[int, int], float | None], answers: dict[str, list[list[str]]]) -> Judged:
    """Of `a` against `b`, shown first, in one round; `said`: by prompt and turn, None where it was too long."""
    places = [Place("a", "b", prompt, 0, turn, True, 0) for prompt, turn in said]
    verdicts = [
        None if value is None else Verdict(str(place), value if value >= 0 else None, None, "m")
        for place, value in zip(places, said.values(), strict=True)
    ]
    turns = len(answers["a"][0])
    there: dict[str, list[list[list[str] | None]]] = {model: [[each] for each in of] for model, of in answers.items()}
    answered = Answered([["asked"] * turns] * len(answers["a"]), there, [None] * len(answers["a"]))
    return judged([(place, False) for place in places], {"judge": verdicts}, answered, 1)


def test_lengths_are_those_of_what_was_judged() -> None:
    """A verdict is on its own turn; ratings are compared over all turns that both have a rating of."""
    answers = {"a": [["a" * 3, "a" * 50], ["a", "a" * 7]], "b": [["b" * 10, "b" * 20], ["b" * 2, "b" * 9]]}
    found = compared({(0, 1): 1.0, (0, 2): 0.0, (1, 1): 0.5, (1, 2): -1}, answers)
    at = of_what_was_judged(found, ["a", "b"])["judge"]["a", "b"]
    np.testing.assert_array_equal(at.won, [[1.0, 0.0], [0.5, np.nan]])
    np.testing.assert_array_equal(at.characters, [[3, 50], [1, 7]])
    np.testing.assert_array_equal(at.against, [[10, 20], [2, 9]])
    np.testing.assert_array_equal(outcomes(found, ["a", "b"]), [[0.5], [0.5]])
    ratings = {("a", 0, 1): 8.0, ("a", 0, 2): None, ("b", 0, 1): 9.0, ("b", 0, 2): 3.0}
    at = of_what_was_judged(rated(ratings, rounds=1, turns=2), ["a", "b"])["judge"]["a", "b"]
    np.testing.assert_array_equal((at.won, at.characters, at.against), [[[0.0]], [[4.0]], [[4.0]]])


def test_a_judge_of_length_alone_is_seen_through_in_a_conversation() -> None:
    """In every turn the longer answer wins, and the second turns are of equal length in all."""
    rng = np.random.default_rng(0)
    long, said = rng.integers(0, 2, 60), {}
    answers = {"a": [["x" * (5 + 20 * int(each)), "same"] for each in long], "b": [["x" * 15, "sane"]] * 60}
    for prompt, each in enumerate(long):
        said |= {(prompt, 1): 0.1 + 0.8 * float(each), (prompt, 2): 0.5}
    found = compared(said, answers)
    at_lengths = of_what_was_judged(found, ["a", "b"])
    unused = {"a": np.zeros((60, 1)), "b": np.zeros((60, 1))}
    ahead, _ = pairs(judged_outcomes(found, at_lengths), unused, at_lengths)
    assert ahead["win_rate"] != pytest.approx(0.5, abs=0.02)
    assert ahead["length_controlled"] == pytest.approx(0.5, abs=0.02)
    assert ahead["length_controlled_ci95"][0] < 0.5 < ahead["length_controlled_ci95"][1]


def test_what_was_too_long_for_a_judge_is_not_what_it_said_badly() -> None:
    answers = {model: [[model]] * 4 for model in "ab"}
    found = compared({(0, 1): None, (1, 1): -1, (2, 1): 0.9, (3, 1): None}, answers)
    [pair] = judge_numbers(found, {"judge": {}}, ["a", "b"], [None] * 4)["judge"]["pairs"]
    assert (pair["asked"], pair["unreadable"], pair["unjudged"], pair["left_out"]) == ((4, 0), (1, 0), (2, 0), 3)
    places = [Place("a", None, prompt, 0, 1, None, 0) for prompt in range(4)]
    said = [None, Verdict("1", None, None, "no idea"), Verdict("2", None, 7.0, "[[7]]"), None]
    rated_ = judged([(place, False) for place in places], {"judge": said}, found.answered, 1)
    numbers = judge_numbers(rated_, {"judge": {}}, ["a"], ["math"] * 4)["judge"]["rated"]["a"]
    assert (numbers["asked"], numbers["unreadable"], numbers["unjudged"]) == ((4,), (1,), (2,))
    assert numbers["score"]["mean"] == numbers["categories"]["math"]["mean"] == 7.0
