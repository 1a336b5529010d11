"""`orpo-ray verdicts`: others' files in, JSON out, or one line that names what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_one_line, cases, damaged, damages
from hypothesis import given
from hypothesis import strategies as st
from one_by_one import typed

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.alpaca_eval import length_controlled, read_verdicts, win_rate
from orpo_ray.leaderboards.length_controlled import NAMES, read_difficulty
from orpo_ray.leaderboards.verdicts import BENCHMARKS, Files, aggregate, as_json

WEIGHTS = dict(zip(NAMES.values(), (-1.5, 0.9, -3.0), strict=True))


def annotations(count: int = 12, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": f"task {i}", "output_1": "reference " * (3 + i % 4), "output_2": "mine " * (2 + i % 5),
         "preference": 1 + (i % 3) / 2.5, "generator_1": "gpt4_1106_preview", "generator_2": "mine",
         "annotator": "weighted_alpaca_eval_gpt4_turbo", **fields}
        for i in range(count)
    ]  # fmt: skip


def difficulties(count: int = 12) -> list[dict[str, Any]]:
    return [{"instruction": f"task {i}", "difficulty": i / 4 - 1} for i in range(count)]


def judgments(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"question_id": 81 + i // 2, "model": "mine", "judge": ["gpt-4", "single-v1"], "turn": 1 + i % 2,
         "score": 1 + i % 9, "judgment": f"[[{1 + i % 9}]]", "user_prompt": "?", "tstamp": float(i)}
        for i in range(count)
    ]  # fmt: skip


def written(path: Path, value: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(each) + "\n" for each in value) if ".jsonl" in path.name else json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def made(tmp_path: Path) -> Files:
    return Files(
        written(tmp_path / "annotations.json.gz", annotations()),
        written(tmp_path / "difficulty.json", difficulties()),
        written(tmp_path / "weights.json", [{"model": "mine", **WEIGHTS}]),
        written(tmp_path / "prompts.json", difficulties()),
    )


def only(numbers: dict[str, Any]) -> dict[str, Any]:
    (result,) = json.loads(as_json(numbers))["results"]
    return result


def test_the_command_prints_json_or_one_line(made: Files, tmp_path: Path) -> None:
    judged = written(tmp_path / "judged.jsonl", judgments())
    bad = written(tmp_path / "bad.json", [*annotations(2), {"instruction": "x"}])
    command = ["verdicts", str(made.verdicts), "--benchmark", "alpaca-eval-2"]
    whole = [*command, "--difficulty", str(made.difficulty), "--weights", str(made.weights)]
    first, again, ratings, wrong, unknown, absent, foreign, missing = typed(
        whole, whole, ["verdicts", str(judged), "--benchmark", "mt-bench"],
        ["verdicts", str(bad), "--benchmark", "alpaca-eval-2"],
        ["verdicts", str(judged), "--benchmark", "mt-bank"],
        ["verdicts", str(tmp_path / "no\x1bwhere.json"), "--benchmark", "mt-bench"],
        ["verdicts", str(judged), "--benchmark", "mt-bench", "--weights", str(made.weights)],
        ["verdicts", str(judged)], cwd=tmp_path,
    )  # fmt: skip
    assert (first.returncode, first.stderr) == (0, "") and first.stdout == again.stdout
    numbers = json.loads(first.stdout)
    assert (numbers["benchmark"], numbers["file"]) == ("alpaca-eval-2", str(made.verdicts))
    assert numbers["results"][0]["length_controlled"]["made_by"] == "published weights"
    assert json.loads(ratings.stdout)["results"][0]["turns"].keys() == {"1", "2"}
    for done, told in (
        (wrong, f"orpo-ray: {bad}[record 2]: has no output_1"),
        (unknown, f"orpo-ray: --benchmark mt-bank: not one of {', '.join(BENCHMARKS)}"),
        (absent, f"orpo-ray: {tmp_path}/no\\x1bwhere.json: cannot be read: No such file or directory"),
        (foreign, "orpo-ray: --weights: mt-bench does not read it"),
        (missing, "orpo-ray: Missing option '--benchmark'; see orpo-ray verdicts --help"),
    ):
        assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", told)


def test_rows_without_partner_are_counted_and_said(made: Files) -> None:
    rows = [*annotations(9), *annotations(1, instruction="of another benchmark")]
    rows[3]["preference"] = None
    written(made.verdicts, rows)
    result = only(aggregate("alpaca-eval-2", Files(made.verdicts, prompts=made.prompts)))
    counts = ("instructions", "without_row", "without_instruction", "unreadable", "n")
    assert [result[key] for key in counts] == [12, 3, 1, 1, 8]
    assert result["win_rate"] == pytest.approx(100 * (sum(r["preference"] or 1 for r in rows[:9]) - 9) / 8)
    said = " ".join(result["remarks"])
    for part in ("3 of 12 instructions have no row, such as 'task 9'", "1 row is left out", "1 row has no pref"):
        assert part in said
    whole = only(aggregate("alpaca-eval-2", Files(made.verdicts)))
    assert (whole["instructions"], whole["n"]) == (None, 9)


@pytest.mark.parametrize("count", [1, 2])
def test_one_is_said_of_one(made: Files, tmp_path: Path, count: int) -> None:
    """Of each thing that remarks count."""
    rows = [*annotations(12 - count), *({**annotations(1)[0], "instruction": f"else {i}"} for i in range(count))]
    for row in rows[:count]:
        row["preference"] = None
    written(made.verdicts, rows)
    said = only(aggregate("alpaca-eval-2", Files(made.verdicts, prompts=made.prompts)))["remarks"]
    ratings = judgments()[count:]
    for row in ratings[:count]:
        row["score"] = -1
    judged = written(tmp_path / "judged.jsonl", [*ratings, *ratings[-count:]])
    questions = [{"question_id": 81 + i, "category": "math", "turns": ["?", "?"]} for i in range(10)]
    asked = written(tmp_path / "question.jsonl", questions)
    said += only(aggregate("mt-bench", Files(judged, prompts=asked)))["remarks"]
    counted = [remark for remark in said if remark[:1].isdigit()]
    assert [remark.split(", such as")[0] for remark in counted] == (
        {
            1: [
                "1 of 12 instructions has no row",
                "1 row is left out: the benchmark has no such instruction",
                "1 row has no preference and is left out of the win-rate",
                "1 judging has no rating from 1 to 10 and is left out",
                "1 answer has no judging",
                "1 record is left out: it repeats another with its time stamp",
            ],
            2: [
                "2 of 12 instructions have no row",
                "2 rows are left out: the benchmark has no such instruction",
                "2 rows have no preference and are left out of the win-rate",
                "2 judgings have no rating from 1 to 10 and are left out",
                "2 answers have no judging",
                "2 records are left out: they repeat another with its time stamp",
            ],
        }[count]
    )


def test_categories_are_missed_where_there_is_something_to_sort_by_them(tmp_path: Path) -> None:
    """An evaluation whose judge said nothing readable of any answer was told to give `--prompts`, which it has not."""
    for score, told in ((7.0, False), (-1, False)):
        rated = written(tmp_path / "judged.jsonl", [each | {"score": score} for each in judgments()])
        own = written(tmp_path / "own.jsonl", [each | {"score": score, "question_id": 7} for each in judgments(1)])
        assert any("--prompts" in said for said in only(aggregate("mt-bench", Files(rated)))["remarks"]) == told
        remarks = only(aggregate("mt-bench", Files(own)))["remarks"]
        assert ("--prompts says which category a question is of" in remarks) == (score > 0)


def test_which_length_controlled_number_it_is_is_said(made: Files, tmp_path: Path) -> None:
    def numbers(**files: Path | None) -> dict[str, Any]:
        return only(aggregate("alpaca-eval-2", Files(made.verdicts, **files)))

    published = numbers(difficulty=made.difficulty, weights=made.weights)
    values = [1 / (1 + 2.718281828459045 ** -(0.9 * each["difficulty"] - 3)) for each in difficulties()]
    assert published["length_controlled_winrate"] == pytest.approx(100 * sum(values) / 12)
    assert published["remarks"] == []
    refit = numbers(difficulty=made.difficulty)
    assert refit["length_controlled_winrate"] is None
    assert refit["length_controlled"]["without_gamed_rows"] == published["length_controlled"]["without_gamed_rows"]
    assert "without_gamed_rows is another number than AlpacaEval 2's" in refit["remarks"][-1]
    alone = numbers()
    assert alone["length_controlled"] is None and "is another number than AlpacaEval 2's" in alone["remarks"][-1]
    assert alone["length_controlled_here"] == published["length_controlled_here"]
    gamed = tmp_path / "df_gamed.csv"
    gamed.write_text("index,instruction_difficulty,preference,std_delta_len\n" + "".join(
        f"{i},{each['difficulty']},{0.2 + 0.6 * (length < 0)},{length}\n"
        for length in (-1.5, 1.5) for i, each in enumerate(difficulties())
    ))  # fmt: skip
    fitted = numbers(difficulty=gamed, prompts=made.prompts)
    assert fitted["length_controlled"]["made_by"] == "refit with the gamed rows"
    assert fitted["length_controlled_winrate"] is not None and "is fitted here" in fitted["remarks"][-1]


def test_another_reference_or_judge_is_said(made: Files) -> None:
    written(made.verdicts, annotations(generator_1="text_davinci_003"))
    (reference, *_) = only(aggregate("alpaca-eval-2", Files(made.verdicts)))["remarks"]
    assert reference.startswith("the reference is not gpt4_1106_preview")
    (judge, *_) = only(aggregate("alpaca-eval-1", Files(made.verdicts)))["remarks"]
    assert judge.startswith("the annotator is not alpaca_eval_gpt4")
    unnamed = [{k: v for k, v in row.items() if k not in ("generator_1", "annotator")} for row in annotations()]
    written(made.verdicts, unnamed)
    assert len(only(aggregate("alpaca-eval-2", Files(made.verdicts)))["remarks"]) == 1


def test_a_model_without_weights_among_others_is_said(made: Files) -> None:
    written(made.verdicts, [*annotations(), *annotations(generator_2="yours")])
    mine, yours = aggregate("alpaca-eval-2", Files(made.verdicts, made.difficulty, made.weights))["results"]
    assert mine["length_controlled_winrate"] is not None and mine["remarks"] == []
    assert yours["length_controlled_winrate"] is None
    assert yours["remarks"][-1] == f"{made.weights} has no weights of this model"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": [{"model": "other", **WEIGHTS}]}, "weights.json: has no weights of mine"),
        ({"difficulty": difficulties(11)}, "difficulty.json: has no difficulty of 1 of 12 instructions"),
        ({"difficulty": [*difficulties(11), {"instruction": "task 11", "difficulty": 1e300}]}, "should be near 1"),
        ({"difficulty": difficulties(11), "prompts": None}, "difficulty.json: has no difficulty of 1 of 12"),
        ({"difficulty": None}, "--weights: tell nothing without --difficulty"),
        ({"prompts": [{"prompt": "x"}]}, r"prompts.json[record 0]: has no instruction"),
        ({"prompts": [*difficulties(), *difficulties(1)]}, "prompts.json: has the instruction 'task 0' twice"),
        ({"annotations": annotations(preference=None)}, "annotations.json.gz: no row of mine has a preference"),
        (
            {"annotations": [{"instruction": "x", "output": "y", "generator": "z"}]},
            "is a model's output and no verdict",
        ),
        ({"annotations": annotations(generator_2=None)}, "has no weights of a model without a name (generator_2)"),
        ({"annotations": annotations(instruction="task 1")}, "is on the same instruction as"),
    ],
)
def test_files_that_do_not_fit_are_refused(made: Files, change: dict[str, Any], told: str) -> None:
    files: dict[str, Path | None] = {
        "annotations": made.verdicts, "difficulty": made.difficulty, "weights": made.weights, "prompts": made.prompts,
    }  # fmt: skip
    for name, value in change.items():
        path = files[name]
        assert path is not None
        files[name] = None if value is None else written(path, value)
    verdicts = files.pop("annotations")
    assert verdicts is not None
    with pytest.raises(UserError) as error:
        aggregate("alpaca-eval-2", Files(verdicts, **files))
    assert_one_line(error.value, told)


LISTS = {
    "instruction": [0, 2, 5], "preference": [1.0, 2.0, 1.5], "reference_characters": [10, 20, 30],
    "model_characters": [5, 40, 30],
}  # fmt: skip


def test_verdicts_without_texts_are_read_too(made: Files, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps({"mine": LISTS, "yours": {**LISTS, "preference": [1, None, 1]}}))
    mine, yours = aggregate("alpaca-eval-2", Files(path, made.difficulty))["results"]
    assert (mine["model"], mine["n"], mine["win_rate"], mine["without_row"]) == ("mine", 3, pytest.approx(50), 9)
    assert (yours["model"], yours["n"], yours["unreadable"], yours["identical"]) == ("yours", 2, 1, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preference": [1.0, 2.0]}, "should be equally long"),
        ({"preference": [1.0, 2.0, 3.0]}, "numbers from 1 to 2"),
        ({"instruction": [0, 0, 1]}, "each number once"),
        ({"instruction": [0, 1, 12]}, "whole numbers from 0, below 12"),
        ({"instruction": [0, 1, 1.5]}, "whole numbers from 0, below 12"),
        ({"instruction": [0, 1, None]}, "whole numbers from 0, below 12"),
        ({"model_characters": [1, 2, None]}, "characters should be 0 or more"),
        ({"reference_characters": [1, 2, 1e300]}, "characters should be 0 or more"),
        ({"model_characters": 7}, "model_characters should be a list, and is a whole number"),
    ],
)
def test_verdicts_without_texts_that_do_not_fit(made: Files, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps({"mine": {**LISTS, **change}}))
    with pytest.raises(UserError) as error:
        aggregate("alpaca-eval-2", Files(path, made.difficulty))
    assert_one_line(error.value, f"{path}: mine: ", told)


def test_published_rates_of_29_models_are_met(shared: Path) -> None:
    path = shared / "data" / "alpaca_eval" / "verdicts.json.gz"
    verdicts = json.loads(gzip.decompress(path.read_bytes()))
    found = read_verdicts(path, None)
    assert [each.model for each in found] == list(verdicts)
    for each in found:
        published, here = verdicts[str(each.model)]["published"], win_rate(each.preferences, resamples=10)
        assert here.win_rate == pytest.approx(published["win_rate"], abs=1e-5)  # preferences are rounded there
        assert here.standard_error == pytest.approx(published["standard_error"], abs=1e-6)


@pytest.mark.long
def test_refits_without_gamed_rows_are_as_far_off_as_they_are_said_to_be(shared: Path) -> None:
    folder = shared / "data" / "alpaca_eval"
    verdicts = json.loads(gzip.decompress((folder / "verdicts.json.gz").read_bytes()))
    difficulty = read_difficulty(folder / "instruction_difficulty.json", None)
    off = []
    for each in read_verdicts(folder / "verdicts.json.gz", difficulty.instructions):
        found = length_controlled(each, difficulty, None).without_gamed_rows
        assert found is not None
        off.append(abs(found - verdicts[str(each.model)]["published"]["length_controlled_winrate"]))
    assert (round(sum(off) / len(off), 1), round(max(off), 1)) == (1.0, 2.5)


@pytest.mark.parametrize("kind", ["annotations", "difficulty", "weights", "prompts", "judgments", "questions"])
@given(changes=damages, rate=st.booleans())
@cases(150)
def test_fuzz_damaged_files(
    kind: str, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, int]], rate: bool
) -> None:
    """Numbers that JSON can hold, or one line."""
    folder = tmp_path_factory.mktemp("damaged")
    questions = [{"question_id": 81 + i, "category": "math", "turns": ["a", "b"]} for i in range(10)]
    made = {
        "annotations": (annotations(6), ".json"), "difficulty": (difficulties(6), ".json"),
        "weights": ([{"model": "mine", **WEIGHTS}], ".json"), "prompts": (difficulties(6), ".json"),
        "judgments": (judgments(), ".jsonl.gz" if rate else ".jsonl"), "questions": (questions, ".jsonl"),
    }  # fmt: skip
    paths = {name: written(folder / f"{name}{suffix}", value) for name, (value, suffix) in made.items()}
    paths[kind].write_bytes(damaged(paths[kind].read_bytes(), changes))
    try:
        if kind in ("judgments", "questions"):
            as_json(aggregate("mt-bench", Files(paths["judgments"], prompts=paths["questions"])))
        else:
            given_files = Files(paths["annotations"], paths["difficulty"], paths["weights"], paths["prompts"])
            as_json(aggregate("alpaca-eval-2", given_files))
    except UserError as error:
        assert_one_line(error)
