"""What an evaluation's page says of judges and leaderboards: made-up results, and the text that a reader sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_run import add_judges, change, make_evaluation
from test_evaluation_page import tables, visible

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Annotation, Judgment, write_annotations, write_judgments
from orpo_ray.leaderboards.verdicts import Files, aggregate
from orpo_ray.report import write_evaluation_report
from orpo_ray.report.leaderboard_tables import Leaderboard, _said, own_numbers
from orpo_ray.statistics.judged_pairs import Verdicts, judged_pair

ROUNDS = 3
UNANSWERED = "2 of 41 prompts have no response, and count as not followed"
FILE = {"bos": None, "template": None, "digest": None, "lengths": None, "mean_tokens": None, "cut": 0, "odds": None}
"""Of a model whose answers were made elsewhere, as an evaluation leaves it."""


def add_leaderboards(folder: Path, made: Path) -> Path:
    """AlpacaEval 2, MT-Bench and IFEval of three rounds, the first two made of files by what the command calls."""
    rng = np.random.default_rng(1)
    alpaca: list[dict[str, Any]] = []
    bench: list[dict[str, Any]] = []
    for round in range(ROUNDS):
        for model in ("sft", "orpo"):
            path = made / f"{model}-{round}.json"
            preferences = 1 + rng.random(40)
            write_annotations(path, [
                Annotation(
                    instruction=f"Do {i}.", output_1="a" * 80, output_2="b" * int(rng.integers(40, 120)),
                    preference=None if (i, round) == (3, 1) else float(preferences[i]), generator_1="dpo",
                    generator_2=model, annotator="labels", raw_completion=None,
                ) for i in range(40)
            ])  # fmt: skip
            alpaca += [{"judge": "labels", "round": round, **row} for row in _results("alpaca-eval-2", path)]
        path = made / f"rater-{round}.jsonl"
        write_judgments(path, [
            Judgment(
                question_id=number, model=model, turn=turn, judge="rater", judgment="Rating: [[7]]", tstamp=0.0,
                score=None if _has_none(number, model, turn) else float(rng.integers(1, 11)),
            )
            for number in range(81, 161) for model in ("sft", "orpo") for turn in (1, 2)
        ])  # fmt: skip
        bench += [{**row, "judge": "rater", "round": round} for row in _results("mt-bench", path)]
    followed = {"followed": 30, "n": 41, "rate": 30 / 41, "ci95": [0.6, 0.86]}
    rate = dict.fromkeys(("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"), followed)
    checked = [
        {"model": "sft", "round": round, "remarks": ["an argument was drawn", UNANSWERED], "failures": [
            {"key": 7, "instruction": "keywords:existence", "strict": False, "loose": bool(round)}], **rate}
        for round in range(ROUNDS)
    ]  # fmt: skip
    published = [{"name": f"elsewhere {i}", "numbers": {"score": 9 - i / 10, "length_controlled_winrate": 50.0 - i,
                  "win_rate": 40.0 - i, "prompt_strict": 0.9}} for i in range(45)]  # fmt: skip
    boards = {
        "alpaca-eval-2": {"ranked_by": "length_controlled_winrate", "rows": alpaca, "published": published},
        "mt-bench": {"ranked_by": "score", "rows": bench, "published": []},
        "ifeval": {"ranked_by": "prompt_strict", "rows": checked, "published": []},
    }
    change(folder, lambda content: content.update(leaderboards=boards))
    return folder


def _has_none(number: int, model: str, turn: int) -> bool:
    """One answer that cannot be read in any round, and a whole category of the other model."""
    return (number, model, turn) == (85, "sft", 2) or (model == "orpo" and 111 <= number <= 120)


def _results(benchmark: str, path: Path) -> list[dict[str, Any]]:
    found = aggregate(benchmark, Files(path))["results"]
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = add_judges(make_evaluation(tmp_path_factory.mktemp("page") / "e"))
    add_leaderboards(folder, folder.parent)

    def single_order(content: dict[str, Any]) -> None:
        content["models"]["sft"] |= FILE
        for pair, orders in zip(content["judges"]["labels"]["pairs"], ((0, 1), (0,), (0, 1)), strict=True):
            pair |= _judged_in(orders, prompts=60 if pair["against"] != "dpo" or pair["model"] == "sft" else 8)

    change(folder, single_order)
    return write_evaluation_report(folder)


def _judged_in(orders: tuple[int, ...], prompts: int) -> dict[str, Any]:
    """A pair whose prompts were each shown in one of `orders`, in turn."""
    first, asked = np.full((prompts, 1, 2, 1), np.nan), np.zeros((prompts, 1, 2, 1), dtype=bool)
    for prompt in range(prompts):
        order = orders[prompt % len(orders)]
        asked[prompt, 0, order] = True
        if prompt % 7:
            first[prompt, 0, order] = (prompt * 37 % 100) / 100
    found = judged_pair(Verdicts(first, asked))
    return {"position_bias": found.position_bias and vars(found.position_bias), "consistency": None, "noise": None,
            "asked": found.asked, "unreadable": found.unreadable, "left_out": found.left_out,
            "unknown": found.unknown}  # fmt: skip


def trust(page: Path) -> list[dict[str, str]]:
    [table] = [t for t in tables(page) if "comparisons left out" in t[0]]
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def test_a_bias_that_one_order_cannot_tell_is_said_with_its_reason(page: Path) -> None:
    sft_orpo, sft_dpo, orpo_dpo = trust(page)
    assert sft_orpo["found from"] == "one order of each" and "points" in sft_orpo["what the first place is worth"]
    assert {row["what the first place is worth"] for row in (sft_dpo, orpo_dpo)} == {"cannot be told"}
    assert sft_dpo["same verdict in both orders"] == sft_dpo["judged again"] == "cannot be told"
    text = visible(page)
    told = "“What the first place is worth” cannot be told of"
    assert (
        f"{told} sft and dpo: the same model was always shown first, so what that is worth is in its win-rate." in text
    )
    assert (
        f"{told} orpo and dpo: each prompt was shown in one order, and only 3 could be read in one of the two." in text
    )
    assert text.count("“Same verdict in both orders” cannot be told: no prompt was shown in both orders.") == 1
    assert text.count("“Judged again” cannot be told: everything was judged once.") == 1
    assert "it is the difference between prompts that drew one and prompts that drew the other" in text


def test_comparisons_that_are_left_out_are_shown(page: Path) -> None:
    assert [row["comparisons left out"] for row in trust(page)] == ["9", "9", "2"]


def test_nothing_is_said_to_be_cut_of_answers_from_elsewhere(page: Path) -> None:
    [table] = [t for t in tables(page) if "cut at 48" in t[0]]
    cut = {row[0]: row[table[0].index("cut at 48")] for row in table[1:]}
    assert cut["sft"] == "–" and re.fullmatch(r"\d+ \(\d+\.\d%\)", cut["orpo"])


def test_a_remark_that_all_rounds_have_is_said_once(page: Path) -> None:
    text = visible(page)
    same = "length_controlled_here is another number than AlpacaEval 2's, and does not compare with it."
    assert text.count(same) == 1 and f"All: {same}" in text
    assert text.count("row has no preference") == 1
    assert "sft, by labels, round 2; orpo, by labels, round 2: 1 row has no preference" in text
    assert text.count("are 85 (2).") == 1
    assert "sft, by rater: unreadable, by question (and turn), are 85 (2)." in text
    assert text.count("an argument was drawn") == text.count("prompts have no response, and count as not followed") == 1
    assert "In order of “length-controlled, AlpacaEval 2's”, rows without it last. Published numbers" in text
    assert "5 more, which are lower, are not shown" in text


def test_a_category_without_a_rating_moves_no_column(page: Path) -> None:
    [table] = [t for t in tables(page) if "writing" in t[0] and "score" in t[0]]
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    of = {name: [row for row in rows if row["model"] == name] for name in ("sft", "orpo")}
    assert {row["round"] for row in of["sft"]} == {row["round"] for row in of["orpo"]} == {"1", "2", "3"}
    assert "are 111 (1, 2), 112 (1, 2), " in visible(page)
    assert {row["math"] for row in of["orpo"]} == {"–"} and all(float(row["math"]) for row in of["sft"])
    assert all(row["unreadable"] == "20" for row in of["orpo"]) and {row["unreadable"] for row in of["sft"]} == {"1"}


@pytest.mark.parametrize("readable", [True, False])
def test_no_radar_is_drawn_of_ratings_that_could_not_be_read(readable: bool, tmp_path: Path) -> None:
    folder = add_judges(make_evaluation(tmp_path / "e", prompts=12))

    def edit(content: dict[str, Any]) -> None:
        for rated in content["judges"]["rater"]["rated"].values():
            rated["categories"] = {name: mean if readable else None for name, mean in rated["categories"].items()}
            assert len(rated["categories"]) == 3

    change(folder, edit)
    assert ("Ratings by category" in write_evaluation_report(folder).read_text()) == readable


def test_one_s_own_models_stand_out_among_published_ones(page: Path) -> None:
    rows = re.findall(r'<tr( class="published")?><th scope="row">(.*?)</th>', page.read_text(encoding="utf-8"))
    told = (
        {bool(kind) for kind, cell in rows if "(published)" in cell},
        {bool(kind) for kind, cell in rows if "(p" not in cell},
    )
    assert told == ({True}, {False})
    [table] = [t for t in tables(page) if "refitted without gamed rows" in t[0]]
    assert sum("(published)" in row[0] for row in table) == 40 and [row[0] for row in table].count("sft") == ROUNDS


@pytest.mark.parametrize(
    ("board", "told"),
    [
        ({"ranked_by": "model"}, "leaderboards.mt-bench.ranked_by: Input should be 'win_rate'"),
        ({"rows": [{"model": "sft"}]}, "leaderboards.mt-bench.rows: judge: Field required"),
    ],
)
def test_a_board_that_is_none_is_told(board: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "e", prompts=8, rounds=1)
    whole = {"ranked_by": "score", "rows": [], "published": [], **board}
    change(folder, lambda content: content.update(leaderboards={"mt-bench": whole}))
    with pytest.raises(UserError) as error:
        write_evaluation_report(folder)
    assert str(error.value).startswith(f"{folder / 'winrates.json'}: {told}")


def test_scores_of_an_earlier_version_are_read() -> None:
    """They are of evaluations that are finished, which `status` and `report` look at."""
    score = {"score": 6.5, "ci95": [6.0, 7.0], "ratings": 160, "questions": 80}
    row = {
        "model": "sft", "judge": "rater", "round": 0, "score": score, "turns": {"1": score}, "categories": {},
        "unreadable": [], "remarks": [],
    }  # fmt: skip
    boards = {"mt-bench": Leaderboard(ranked_by="score", rows=[row], published=[])}
    found = own_numbers(boards, Path("winrates.json"))
    assert found == {"mt-bench": [{"model": "sft", "judge": "rater", "round": 0, "score": 6.5}]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", 0, ["x"])], ["a: x."]),
        ([("a", 0, ["x"]), ("a", 1, ["x"])], ["a: x."]),
        ([("a", 0, ["x"]), ("a", 1, [])], ["a, round 1: x."]),
        ([("a", 0, ["x"]), ("a", 1, []), ("a", 2, ["x"])], ["a, round 1 and 3: x."]),
        ([("a", 0, ["x"]), ("b", 0, ["x", "y"])], ["All: x.", "b: y."]),
        ([("a", 0, ["x"]), ("b", 0, ["x"]), ("b", 1, [])], ["a; b, round 1: x."]),
        ([("a", 0, [])], []),
    ],
)
def test_whose_a_remark_is(rows: list[tuple[str, int, list[str]]], said: list[str]) -> None:
    assert _said(rows) == said
