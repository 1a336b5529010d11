"""MT-Bench's numbers: of judgments whose numbers are known."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.errors import UserError
from orpo_ray.leaderboards import mt_bench
from orpo_ray.leaderboards.files import Judgment, Question, read_answers, read_questions
from orpo_ray.leaderboards.mt_bench import Place, rating
from orpo_ray.statistics.rated_answers import mean_rating, rated_answers

QUESTIONS = [
    Question(question_id=81 + i, category=mt_bench.CATEGORIES[i // 10], turns=("first", "second")) for i in range(80)
]


def judgment(question: int | str = 81, turn: int = 1, score: float | None = 5.0, **fields: Any) -> Judgment:
    return Judgment(**{"question_id": question, "turn": turn, "score": score, "model": "m", "judge": "j"} | fields)


def judged(seed: int = 0, times: int = 1) -> list[Judgment]:
    """All 80 questions in both turns; turn two is worse, and later categories are better."""
    rng = random.Random(seed)
    return [
        judgment(81 + i, turn, min(10, 2 + i // 10 + (turn == 1) + rng.choice([0, 0.5])), tstamp=float(time))
        for time in range(times) for i in range(80) for turn in (1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Rating: [[8]]", 8), ("[[7.5]]", 7.5), ("[[10]]", 10), ("[[1]]", 1), ("[[10.0]] and [[2]]", 10),
        ("I give it [6].", 6), ("see [3], and so [[9]]", 9), ("[2][4]", 2), ("[[5.]]", 5), ("\n[[4]]\n", 4),
        ("[[0]]", None), ("[[11]]", None), ("[[0.5]]", None), ("[[100]]", None), ("[0]", None), ("[[-1]]", None),
        ("8", None), ("", None), ("[[eight]]", None), ("[[8/10]]", None), ("[[ 8 ]]", None), ("Rating: 8/10", None),
        ("[[٨]]", None), ("[[11]] or [5]", None), ("[[rating]] then [6]", 6), ("[[8", None),
    ],
)  # fmt: skip
def test_ratings_that_are_read(text: str, value: float | None) -> None:
    assert rating(text) == value


@given(st.text(), st.decimals(1, 10, places=2), st.text(alphabet=st.characters(exclude_characters="[")))
@cases(200)
def test_fuzz_ratings(behind: str, value: Any, before: str) -> None:
    assert rating(f"{before}[[{value}]]{behind}") == float(value)
    found = rating(behind)
    assert found is None or 1 <= found <= 10


@given(st.lists(st.sampled_from(["[", "]", "[[", "]]", "1", "7", "10", "11", ".", " ", "x"]), max_size=8).map("".join))
@cases(300)
def test_fuzz_ratings_are_those_of_the_public_patterns(text: str) -> None:
    """What the public tool reads, but for what is beyond the scale."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    value = None if found is None else float(found[1])
    assert rating(text) == (value if value is not None and 1 <= value <= 10 else None)


def test_score_turns_and_categories() -> None:
    found = judged()
    (result,) = mt_bench.results(found, QUESTIONS)
    assert result.score is not None
    assert result.score.mean == pytest.approx(np.mean([each.score for each in found]))
    assert (result.score.ratings, result.score.answers, result.score.questions) == (160, 160, 80)
    assert result.score.ci95[0] < result.score.mean < result.score.ci95[1]
    assert list(result.turns) == [1, 2] and list(result.categories) == list(mt_bench.CATEGORIES)
    for turn, score in result.turns.items():
        assert score.mean == pytest.approx(np.mean([each.score for each in found if each.turn == turn]))
        assert (score.ratings, score.questions) == (80, 80)
    for i, score in enumerate(result.categories.values()):
        own = range(81 + 10 * i, 91 + 10 * i)
        assert score.mean == pytest.approx(np.mean([each.score for each in found if each.question_id in own]))
        assert (score.ratings, score.questions) == (20, 10)
    assert (result.unreadable, result.missing, result.noise, result.copies) == ((), (), None, 0)


def test_categories_are_known_of_the_benchmarks_own_numbers_alone() -> None:
    with_questions, without = mt_bench.results(judged(), QUESTIONS), mt_bench.results(judged())
    assert with_questions == without
    (result,) = mt_bench.results([*judged(), judgment(161)])
    assert result.categories == {}
    (result,) = mt_bench.results([judgment("81"), judgment(82)])
    assert result.categories == {}
    own = [Question(question_id="q1", category="poems", turns=("x",)), QUESTIONS[0]]
    (result,) = mt_bench.results([judgment("q1", score=3.0), judgment(81, score=4.0)], own)
    assert {name: score.mean for name, score in result.categories.items()} == {"writing": 4, "poems": 3}
    assert result.missing == (Place(81, 2),)


@given(st.permutations(range(20)))
@cases(20)
def test_order_of_lines_changes_nothing(order: list[int]) -> None:
    found = [judgment(81 + i // 2, 1 + i % 2, 1.0 + i % 7) for i in range(20)]
    (one,), (other,) = mt_bench.results(found), mt_bench.results([found[i] for i in order])
    assert (one.score, one.turns) == (other.score, other.turns)


def test_the_benchmarks_own_files_are_read(shared: Path) -> None:
    folder = shared / "data" / "eval_prompts"
    questions = read_questions(folder / "mt_bench_questions.jsonl")
    assert [(each.question_id, each.category) for each in questions] == [
        (each.question_id, each.category) for each in QUESTIONS
    ]
    assert all(len(each.turns) == 2 for each in questions)
    references = read_answers(folder / "mt_bench_reference_gpt-4.jsonl")
    own = {each.question_id for each in questions if each.category in ("math", "reasoning", "coding")}
    assert {each.question_id for each in references} == own
    assert all(len(each.choices) == 1 and len(each.choices[0]) == 2 for each in references)


def test_what_could_not_be_read_is_named_and_left_out() -> None:
    found = [judgment(81, 1, 6.0), judgment(81, 2, -1.0), judgment(82, 1, None), judgment(82, 2, 0.0)]
    (result,) = mt_bench.results([*found, judgment(83, 1, 8.0)])
    assert result.score is not None and result.score.mean == 7
    assert result.unreadable == (Place(81, 2), Place(82, 1), Place(82, 2))
    assert result.missing == (Place(83, 2),)
    assert {turn: score.mean for turn, score in result.turns.items()} == {1: 7}
    (result,) = mt_bench.results([judgment(81, 1, -1.0)])
    assert (result.score, result.turns, result.categories) == (None, {}, {})


def test_answers_that_nobody_judged_are_those_of_the_questions() -> None:
    (result,) = mt_bench.results(judged()[2:], QUESTIONS)
    assert result.missing == (Place(81, 1), Place(81, 2))
    assert mt_bench.results(judged()[2:])[0].missing == ()


@pytest.mark.parametrize(("question", "turn", "told"), [(7, 1, "question 7"), (81, 3, "turn 3 of its question")])
def test_a_judgment_on_no_question_is_refused(question: int, turn: int, told: str) -> None:
    with pytest.raises(UserError, match=rf"^j:9: is on {told}, which the prompts do not have"):
        mt_bench.results([judgment(81), judgment(question, turn, location="j:9")], QUESTIONS)


def test_judging_again_tells_the_judges_noise() -> None:
    rng = np.random.default_rng(0)
    found = [
        judgment(81 + i // 2, 1 + i % 2, float(np.clip(5 + rng.normal(0, 0.8), 1, 10)), tstamp=float(time))
        for time in range(3) for i in range(160)
    ]  # fmt: skip
    (result,) = mt_bench.results(found, QUESTIONS)
    values = np.array([each.score for each in found]).reshape(3, 160)
    assert result.noise is not None and result.noise.answers == 160
    assert result.noise.sd == pytest.approx(math.sqrt(values.var(axis=0, ddof=1).mean()))
    assert result.noise.sd_by_chance == pytest.approx(result.noise.sd / math.sqrt(160))
    assert result.noise.means == pytest.approx(values.mean(axis=1))
    assert result.noise.sd_of_means == pytest.approx(result.noise.sd_by_chance, rel=1)
    assert result.score is not None and (result.score.ratings, result.score.questions) == (480, 80)
    assert result.score.mean == pytest.approx(values.mean())


def test_the_score_of_a_file_is_that_of_the_page_however_often_answers_were_judged() -> None:
    """What `orpo-ray verdicts` makes of judgments, and an evaluation of the arrays that they came from: answers that
    were judged once to four times, some of it unreadable, some beyond the scale, some by nobody."""
    rng = np.random.default_rng(3)
    ratings = rng.integers(1, 11, (80, 1, 2, 4)).astype(float)
    ratings[rng.random(ratings.shape) < 0.1] = np.nan
    asked = np.arange(4) < rng.integers(0, 5, (80, 1, 2, 1))
    found = [
        judgment(81 + i, turn + 1, float(np.nan_to_num(ratings[i, 0, turn, k], nan=-1)), tstamp=float(k))
        for k in range(4) for i in range(80) for turn in range(2) if asked[i, 0, turn, k]
    ]  # fmt: skip
    (result,) = mt_bench.results(found, QUESTIONS)
    page = rated_answers(ratings, asked)
    assert (result.score, tuple(result.turns.values()), result.noise) == (page.score, page.turns, page.noise)
    assert result.score is not None and len(result.unreadable) == sum(page.unreadable) > 10
    assert [*result.categories.values()] == [mean_rating(np.where(asked, ratings, np.nan)[i : i + 10])
                                             for i in range(0, 80, 10)]  # fmt: skip
    # As FastChat's tool: pandas' mean over the records whose score is not -1.
    told = pd.DataFrame(vars(each) for each in found if each.score != -1)
    assert result.score.mean == pytest.approx(told.groupby("model")["score"].mean()["m"], rel=1e-12)
    assert result.score.by_answer == pytest.approx(told.groupby(["question_id", "turn"])["score"].mean().mean())
    assert abs(result.score.mean - result.score.by_answer) > 0.01


def test_a_copy_of_a_record_is_no_second_judging() -> None:
    stamped = judgment(tstamp=1.5, judgment="[[5]]")
    (result,) = mt_bench.results([stamped, dataclasses.replace(stamped, location="elsewhere"), judgment(tstamp=2.5)])
    assert result.copies == 1 and result.score is not None and result.score.ratings == 2
    unstamped = judgment(judgment="[[5]]")  # a judge at temperature 0 may say the same again
    (result,) = mt_bench.results([unstamped, unstamped])
    assert result.copies == 0 and result.noise is not None and result.noise.sd == 0


def test_models_and_judges_stand_apart() -> None:
    found = mt_bench.results([judgment(model="a"), judgment(model="b", score=3.0), judgment(model="a", judge="k")])
    assert [(each.model, each.judge) for each in found] == [("a", "j"), ("b", "j"), ("a", "k")]


def test_an_interval_covers_the_mean_of_other_questions() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(100):
        quality = rng.choice([2.0, 5.0, 9.0], 40)  # of a question, which both of its turns share
        (result,) = mt_bench.results(
            judgment(81 + i, turn, float(quality[i] + rng.uniform(-1, 1))) for i in range(40) for turn in (1, 2)
        )
        assert result.score is not None
        covered.append(result.score.ci95[0] <= 16 / 3 <= result.score.ci95[1])
    assert np.mean(covered) >= 0.9
