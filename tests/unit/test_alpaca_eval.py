"""AlpacaEval's numbers: from its published annotations to every digit, and by what must hold of any."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.errors import UserError
from orpo_ray.leaderboards import alpaca_eval, length_controlled
from orpo_ray.leaderboards.files import Annotation, records
from orpo_ray.leaderboards.files import annotation as read_annotation
from orpo_ray.leaderboards.length_controlled import Rows, Weights

PHI_2 = Weights(-1.5062178060108140, 0.4609680776507991, -3.2866319258286127)
"""As alpaca_eval publishes them; two of the 805 instructions have no row."""

texts = st.text(max_size=30)
logprobs = st.floats(-50, 0)
preferences = st.lists(st.floats(1, 2), min_size=2, max_size=40)


def annotation(instruction: str = "Hi", **fields: Any) -> Annotation:
    given = {"output_1": "hello", "output_2": "hi there", "preference": 1.25, "generator_2": "mine", **fields}
    return Annotation(instruction=instruction, **given)


def rows(seed: int, count: int = 60) -> Rows:
    rng = np.random.default_rng(seed)
    difference, difficulty = rng.normal(0, 300, count), rng.normal(0, 1, count)
    own = length_controlled.slope(difference, np.zeros(count))
    chance = 1 / (1 + np.exp(-(-1.5 * own + difficulty - 1)))
    return Rows(own, difficulty, np.clip(chance + rng.normal(0, 0.2, count), 0, 1))


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "alpaca_eval"


@pytest.fixture(scope="module")
def annotations(folder: Path) -> list[Annotation]:
    return [read_annotation(*each) for each in records(folder / "gemma-2b-it.annotations.json.gz")]


def test_published_annotations_give_the_published_numbers(folder: Path, annotations: list[Annotation]) -> None:
    (verdicts,) = alpaca_eval.verdicts_of(annotations)
    published = next(e for e in json.loads((folder / "published.json").read_text()) if e["model"] == verdicts.model)
    found = alpaca_eval.win_rate(verdicts.preferences, resamples=200)
    assert (f"{found.win_rate:.4f}", f"{found.standard_error:.4f}") == ("3.4020", "0.5390")
    assert (found.n, found.win_rate) == (805, pytest.approx(float(published["win_rate"]), abs=1e-12))
    assert found.standard_error == pytest.approx(float(published["standard_error"]), abs=1e-12)
    difficulty = length_controlled.read_difficulty(folder / "instruction_difficulty.json", None)
    weights = length_controlled.read_weights(folder / "published.json")["gemma-2b-it"]
    controlled = alpaca_eval.length_controlled(verdicts, difficulty, weights)
    assert f"{controlled.win_rate:.4f}" == "5.4375"
    assert controlled.win_rate == controlled.by_instruction
    assert controlled.win_rate == pytest.approx(float(published["length_controlled_winrate"]), abs=1e-7)
    assert (controlled.made_by, controlled.weights) == ("published weights", weights)
    # Refitted it is another number, near that which liblinear (tolerance 1e-4) gives for the same rows.
    assert controlled.without_gamed_rows == pytest.approx(4.722, abs=0.01)
    assert controlled.without_gamed_rows_difference == pytest.approx(4.722 - 5.4375, abs=0.01)
    refit = alpaca_eval.length_controlled(verdicts, difficulty, None)
    assert (refit.win_rate, refit.made_by) == (None, None)
    assert refit.without_gamed_rows == controlled.without_gamed_rows


def test_published_log_probs_give_the_published_preferences(annotations: list[Annotation]) -> None:
    untold = [dataclasses.replace(each, preference=None) for each in annotations]
    found = [alpaca_eval.preference_of(each) for each in untold]
    assert found == pytest.approx([each.preference for each in annotations], abs=1e-9)


def test_where_rows_are_missing_the_leaderboard_takes_difficulties_by_place(folder: Path) -> None:
    difficulty = length_controlled.read_difficulty(folder / "instruction_difficulty.json", None)
    found = alpaca_eval.read_verdicts(folder / "verdicts.json.gz", difficulty.instructions)
    phi_2 = next(each for each in found if each.model == "phi-2")
    assert len(phi_2.instructions) == 803
    controlled = alpaca_eval.length_controlled(phi_2, difficulty, PHI_2)
    assert controlled.win_rate == pytest.approx(4.398682270855682, abs=1e-7)
    assert controlled.by_instruction == pytest.approx(4.3879, abs=1e-4)


@given(texts)
@cases(200)
def test_order_is_the_standard_librarys_draw(instruction: str) -> None:
    drawn = random.Random("is_switched_outputs" + instruction + "0").random()
    assert alpaca_eval.switched(instruction) == (drawn >= 0.5)
    assert alpaca_eval.switched(instruction) == alpaca_eval.switched(instruction)


def test_order_of_known_instructions() -> None:
    names = ("What are the names of some famous actors that started their careers on Broadway?",
             "How did US states get their names?", "What is some cool music from the 1920s?", "", "é")  # fmt: skip
    assert [alpaca_eval.switched(name) for name in names] == [True, True, False, False, False]


@given(texts, st.floats(0, 1))
@cases(200)
def test_order_shown_is_undone(instruction: str, first_is_better: float) -> None:
    found = alpaca_eval.preference(first_is_better, instruction)
    other = alpaca_eval.preference(1 - first_is_better, instruction)
    assert found + other == pytest.approx(3)
    shown_first_is_model = alpaca_eval.switched(instruction)
    assert found - 1 == pytest.approx(first_is_better if shown_first_is_model else 1 - first_is_better)


@given(logprobs, logprobs, st.floats(-5, 0))
@cases(200)
def test_label_probabilities_add_up_and_know_no_scale(first: float, second: float, shift: float) -> None:
    found = alpaca_eval.label_probability({"m": first, "M": second})
    assert 0 <= found <= 1
    assert found + alpaca_eval.label_probability({"m": second, "M": first}) == pytest.approx(1)
    assert alpaca_eval.label_probability({"m": first + shift, "M": second + shift}) == pytest.approx(found)
    assert alpaca_eval.label_probability({"m": first, "M": second, "The": 0.0}) == found


def test_label_that_is_absent_counts_nothing() -> None:
    assert alpaca_eval.label_probability({"m": -3.0, "The": -0.1}) == 1
    assert alpaca_eval.label_probability({"M": -9000.0}) == 0
    assert math.isnan(alpaca_eval.label_probability({"The": -0.1}))
    assert math.isnan(alpaca_eval.label_probability({"m": -math.inf, "M": -math.inf}))
    assert alpaca_eval.label_probability({"m": -math.inf, "M": -1.0}) == 0
    assert alpaca_eval.label_probability({"yes": -1.0, "no": -1.0}, ("yes", "no")) == 0.5


@given(st.dictionaries(st.sampled_from(["m", "M", "The", "é"]), logprobs, min_size=1), texts)
@cases(100)
def test_log_probs_of_labels_are_read_as_servers_write_them(found: dict[str, float], instruction: str) -> None:
    tokens = [{"token": token, "bytes": list(token.encode()), "logprob": found[token]} for token in found]
    completion = json.loads(json.dumps({"logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]}}))
    assert alpaca_eval.label_logprobs(completion) == found
    told = alpaca_eval.preference_of(annotation(instruction, preference=None, raw_completion=completion))
    if {"m", "M"} & set(found):
        assert told == alpaca_eval.preference(alpaca_eval.label_probability(found), instruction)
    else:
        assert math.isnan(told)


def test_preference_wins_over_log_probs_and_identical_outputs_are_a_draw() -> None:
    assert alpaca_eval.preference_of(annotation(preference=1.75, raw_completion={"logprobs": "nonsense"})) == 1.75
    assert alpaca_eval.preference_of(annotation(preference=None, output_1="x", output_2="x")) == 1.5
    for silent in (None, "[{'model': 'model_1'", {}, {"logprobs": None}):
        assert math.isnan(alpaca_eval.preference_of(annotation(preference=None, raw_completion=silent)))


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        ({"logprobs": {"content": []}}, "no log-probs of a label"),
        ({"logprobs": {"content": [{"token": "m"}]}}, "no log-probs of a label"),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": "x"}]}]}}, "no log-probs of a label"),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": 0.5}]}]}}, "above zero"),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": math.nan}]}]}}, "not a number"),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": -1.0}]}] * 2}}, "2 tokens"),
    ],
)
def test_log_probs_that_are_none_are_refused(completion: Any, told: str) -> None:
    with pytest.raises(UserError, match=rf"^f\.json\[record 3\]: .*{told}"):
        alpaca_eval.preference_of(annotation(preference=None, raw_completion=completion, location="f.json[record 3]"))


@given(preferences)
@cases(60)
def test_win_rate_of_the_other_side(found: list[float]) -> None:
    values = np.array(found)
    won, lost = (alpaca_eval.win_rate(each, resamples=50) for each in (values, 3 - values))
    assert won.win_rate + lost.win_rate == pytest.approx(100)
    assert won.standard_error == pytest.approx(lost.standard_error)
    assert (won.wins, won.draws, won.losses) == (lost.losses, lost.draws, lost.wins)
    assert won.standard_error == pytest.approx(100 * values.std(ddof=1) / math.sqrt(len(values)))
    with_gaps = alpaca_eval.win_rate(np.append(values, [math.nan, math.nan]), resamples=50)
    assert with_gaps == won


def test_one_row_has_no_standard_error() -> None:
    assert alpaca_eval.win_rate(np.array([1.5]), resamples=10).standard_error is None


def test_weights_are_those_of_maximum_likelihood_where_the_penalty_is_nothing() -> None:
    found = rows(1)
    x = np.stack([found.slope, found.difficulty, np.ones(len(found.slope))], axis=1)
    twice = np.concatenate([x, x]), np.repeat([1.0, 0.0], len(x))
    weights = np.concatenate([found.outcome, 1 - found.outcome])
    expected = sm.GLM(twice[1], twice[0], sm.families.Binomial(), freq_weights=weights).fit(tol=1e-12).params
    here = length_controlled._minimum(x, found.outcome, np.ones(len(x)), 1e12)
    assert here == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strength", length_controlled.STRENGTHS)
def test_weights_are_at_the_minimum(strength: float) -> None:
    """The subgradient at the least penalised loss holds 0."""
    found = rows(2)
    x = np.stack([found.slope, found.difficulty, np.ones(len(found.slope))], axis=1)
    weights = np.linspace(0.1, 1, len(x))
    at = length_controlled._minimum(x, found.outcome, weights, strength)
    gradient = x.T @ (weights * (1 / (1 + np.exp(-x @ at)) - found.outcome))
    for coefficient, slope in zip(at, gradient, strict=True):
        if coefficient == 0:
            assert abs(slope) <= 1 / strength + 1e-5
        else:
            assert slope == pytest.approx(-np.sign(coefficient) / strength, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_fit_seen_from_the_other_side(seed: int) -> None:
    found = rows(seed)
    own = length_controlled.fit(found, None)
    other = length_controlled.fit(Rows(-found.slope, found.difficulty, 1 - found.outcome), None)
    assert own is not None and other is not None
    assert (other.phi, other.gamma, other.theta) == pytest.approx((own.phi, -own.gamma, -own.theta), abs=1e-5)
    assert own.win_rate(found.difficulty) + other.win_rate(found.difficulty) == pytest.approx(1)


def test_gamed_rows_tell_what_length_does() -> None:
    """A model that is always the longer says nothing of length; two gamed references, which differ in it, do."""
    own = dataclasses.replace(rows(3), slope=np.full(60, 0.7))
    gamed = Rows(np.repeat([-0.9, 0.9], 60), np.tile(own.difficulty, 2), np.repeat([0.9, 0.1], 60))
    found = length_controlled.fit(own, gamed)
    assert found is not None and found.phi == pytest.approx(math.log(0.1 / 0.9) / 0.9, rel=0.2)
    assert length_controlled.fit(dataclasses.replace(own, slope=own.slope[:4], difficulty=own.difficulty[:4],
                                                     outcome=own.outcome[:4]), gamed) is None  # fmt: skip


def test_equal_lengths_have_no_slope() -> None:
    assert length_controlled.slope(np.array([5.0, 9.0]), np.array([4.0, 8.0])).tolist() == [0, 0]
    assert length_controlled.slope(np.array([5.0]), np.array([4.0])).tolist() == [0]


def test_models_judges_and_references_of_one_file_stand_apart() -> None:
    found = alpaca_eval.verdicts_of(
        annotation(text, generator_2=model, annotator=judge, generator_1=reference)
        for model, judge, reference in (("a", "j", "r"), ("b", "j", "r"), ("a", "k", "r"), ("a", "j", "s"))
        for text in ("x", "y")
    )
    assert [(each.model, each.annotator, each.reference) for each in found] == [
        ("a", "j", "r"), ("b", "j", "r"), ("a", "k", "r"), ("a", "j", "s"),
    ]  # fmt: skip
    assert all(each.instructions == ("x", "y") and each.duplicates == 0 for each in found)


def test_repeated_records_count_once_and_conflicting_ones_not_at_all() -> None:
    silent = annotation("y", preference=None)
    (found,) = alpaca_eval.verdicts_of([annotation("x"), silent, annotation("x"), silent])
    assert (found.instructions, found.duplicates) == (("x", "y"), 2)
    first = annotation("x", location="f[record 0]")
    for other in ({"preference": 2.0}, {"preference": None}, {"output_2": "another"}):
        with pytest.raises(UserError, match=r"f\[record 7\]: .* as f\[record 0\]"):
            alpaca_eval.verdicts_of([first, annotation("x", location="f[record 7]", **other)])
