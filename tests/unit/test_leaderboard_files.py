"""The files of AlpacaEval, MT-Bench and IFEval: written, read again, damaged."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_one_line, cases, odd_texts, odd_values
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.config.section import NAME
from orpo_ray.errors import UserError
from orpo_ray.leaderboards import files, length_controlled

numbers = st.integers(-5, 10**6) | st.text(min_size=1, max_size=5)
optional = st.none() | odd_texts
outputs = st.builds(files.Output, instruction=odd_texts, output=odd_texts, generator=odd_texts, dataset=optional)
annotations = st.builds(
    files.Annotation, instruction=odd_texts, output_1=odd_texts, output_2=odd_texts,
    preference=st.none() | st.floats(1, 2), generator_1=optional, generator_2=optional, annotator=optional,
    dataset=optional, raw_completion=st.none() | st.text() | st.dictionaries(st.text(), st.integers()),
    location=st.just(""),
)  # fmt: skip
answers = st.builds(
    files.Answer, question_id=numbers, model=odd_texts,
    choices=st.lists(st.lists(odd_texts, min_size=1, max_size=2).map(tuple), min_size=1, max_size=2).map(tuple),
)  # fmt: skip
judgments = st.builds(
    files.Judgment, question_id=numbers, model=odd_texts, turn=st.integers(1, 3), score=st.floats(-1, 10),
    judgment=optional, judge=st.just("judge"), judge_prompt=odd_texts, user_prompt=optional,
    tstamp=st.none() | st.floats(0, 1e10), location=st.just(""),
)  # fmt: skip
responses = st.builds(files.Response, prompt=odd_texts, response=odd_texts)


def read_annotations(path: Path) -> list[files.Annotation]:
    return [files.annotation(*each) for each in files.records(path)]


KINDS: dict[str, tuple[Any, Any, Any]] = {
    "outputs": (outputs, files.write_outputs, files.read_outputs),
    "annotations": (annotations, files.write_annotations, read_annotations),
    "answers": (answers, files.write_answers, files.read_answers),
    "judgments": (judgments, files.write_judgments, files.read_judgments),
    "responses": (responses, files.write_responses, files.read_responses),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@cases(60)
def test_what_is_written_is_read_again(
    kind: str, suffix: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    records, write, read = KINDS[kind]
    unique = {"unique_by": lambda each: each.prompt} if kind == "responses" else {}
    made = data.draw(st.lists(records, min_size=1, max_size=4, **unique))
    path = tmp_path_factory.mktemp(kind) / f"x{suffix}"
    write(path, made)
    first = path.read_bytes()
    assert read(path) == made
    write(path, made)
    assert path.read_bytes() == first
    content = gzip.decompress(first) if suffix.endswith(".gz") else first
    assert content.isascii()
    assert sorted(child.name for child in path.parent.iterdir()) == [path.name]


def test_written_files_are_those_of_the_benchmarks_own_tools(tmp_path: Path) -> None:
    files.write_outputs(tmp_path / "o.json", [files.Output(instruction="a", output="b", generator="m")])
    assert json.loads((tmp_path / "o.json").read_text()) == [{"instruction": "a", "output": "b", "generator": "m"}]
    annotation = files.Annotation(instruction="a", output_1="b", output_2="c", preference=None, generator_2="m")
    files.write_annotations(tmp_path / "a.json", [annotation])
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"instruction": "a", "output_1": "b", "output_2": "c", "preference": None, "generator_2": "m"}
    ]
    files.write_answers(tmp_path / "m.jsonl", [files.Answer(question_id=81, model="m", choices=(("x", "y"),))])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {
        "question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["x", "y"]}],
    }  # fmt: skip
    judgment = files.Judgment(question_id=81, model="m", turn=2, score=None, judge="gpt-4", judge_prompt="single-v1")
    files.write_judgments(tmp_path / "j.jsonl", [judgment])
    assert json.loads((tmp_path / "j.jsonl").read_text()) == {
        "question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": -1, "turn": 2,
    }  # fmt: skip
    files.write_responses(tmp_path / "r.jsonl", [files.Response(prompt="p", response="r")])
    assert (tmp_path / "r.jsonl").read_text() == '{"prompt": "p", "response": "r"}\n'


def test_the_older_forms_of_annotations_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = {"instruction": "a", "input": "more", "output_1": "b", "output_2": "c", "preference": 0.0}
    path.write_text(json.dumps([record, {**record, "input": "", "preference": float("nan")}]))
    first, second = read_annotations(path)
    assert (first.instruction, first.preference) == ("a\n\nmore", 1.5)
    assert (second.instruction, second.preference, second.location) == ("a", None, f"{path}[record 1]")


SOUND: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "output": (files.read_outputs, {"instruction": "a", "output": "b", "generator": "m"}),
    "annotation": (read_annotations, {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}),
    "answer": (files.read_answers, {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["x"]}]}),
    "question": (files.read_questions, {"question_id": 81, "category": "math", "turns": ["x", "y"]}),
    "judgment": (files.read_judgments, {"question_id": 81, "model": "m", "turn": 1, "score": 5}),
    "response": (files.read_responses, {"prompt": "p", "response": "r"}),
    "difficulty": (
        lambda path: length_controlled.read_difficulty(path, None), {"instruction": "a", "difficulty": 0.5},
    ),
    "weights": (
        length_controlled.read_weights, {"model": "m", **dict.fromkeys(length_controlled.NAMES.values(), "-1.5")},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("output", {"output": None}, "output should be text, and is null"),
        ("output", {"instruction": 3}, "instruction should be text, and is a whole number"),
        ("annotation", {"preference": 2.5}, "preference should be from 1 to 2, and is 2.5"),
        ("annotation", {"preference": -1}, "preference should be from 1 to 2, and is -1"),
        ("annotation", {"preference": "won"}, "preference should be a number, and is 'won'"),
        ("annotation", {"preference": True}, "preference should be a number, and is true or false"),
        ("annotation", {"output_1": ["b"]}, "output_1 should be text, and is a list"),
        ("annotation", {"generator_2": 7}, "generator_2 should be text, and is a whole number"),
        ("answer", {"choices": []}, "choices should be objects with turns"),
        ("answer", {"choices": [{"turns": []}]}, "turns should be texts"),
        ("answer", {"choices": [{"turns": [None]}]}, "turns should be texts"),
        ("question", {"turns": "x"}, "turns should be a list, and is text"),
        ("question", {"question_id": None}, "question_id should be a whole number or text, and is null"),
        ("judgment", {"turn": 0}, "turn should be 1 or more, and is 0"),
        ("judgment", {"turn": True}, "turn should be a whole number, and is true or false"),
        ("judgment", {"score": "seven"}, "score should be a number, and is 'seven'"),
        ("judgment", {"score": 10**400}, "score should be a finite number"),
        ("judgment", {"judge": ["gpt-4"]}, "judge should be the names of a model and of a prompt"),
        ("judgment", {"judge": 4}, "judge should be text or a list, and is a whole number"),
        ("judgment", {"model_1": "a", "g1_winner": "tie"}, "is a verdict on a pair of answers"),
        ("response", {"response": None}, "response should be text, and is null"),
        ("difficulty", {"difficulty": None}, "has no difficulty"),
        ("difficulty", {"difficulty": float("inf")}, "difficulty should be a finite number"),
        ("weights", {"model": None}, "names no model"),
        ("weights", {"instruction_difficulty": ""}, "has no instruction_difficulty"),
    ],
)
def test_a_record_that_is_not_what_it_should_be_is_named(
    tmp_path: Path, kind: str, change: dict[str, Any], told: str
) -> None:
    read, sound = SOUND[kind]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(sound) + "\n" + json.dumps(sound | change) + "\n")
    with pytest.raises(UserError) as error:
        read(path)
    assert_one_line(error.value, f"{path}:2: ", told)


@pytest.mark.parametrize("kind", SOUND)
def test_each_field_that_is_needed_is_asked_for(tmp_path: Path, kind: str) -> None:
    read, sound = SOUND[kind]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([sound]))
    assert read(path)
    for key in sound.keys() - {"preference"}:
        path.write_text(json.dumps([{name: value for name, value in sound.items() if name != key}]))
        with pytest.raises(UserError) as error:
            read(path)
        assert_one_line(error.value, f"{path}[record 0]: ")
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no records"):
        read(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "records", "told"),
    [
        ("question", [{}, {}], "has question 81 twice"),
        ("response", [{}, {"response": "other"}], "two different responses to the prompt 'p'"),
        ("difficulty", [{}, {"difficulty": 0.75}], "two difficulties of the instruction 'a'"),
        ("difficulty", [{}, {}], "has the instruction 'a' twice"),
        ("weights", [{}, {"instruction_difficulty": "2"}], "other weights of m than a record before"),
    ],
)
def test_two_records_that_cannot_both_be(tmp_path: Path, kind: str, records: list[dict[str, Any]], told: str) -> None:
    read, sound = SOUND[kind]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([sound | change for change in records]))
    with pytest.raises(UserError) as error:
        read(path)
    assert_one_line(error.value, str(path), told)


@pytest.mark.parametrize("kind", SOUND)
@given(data=st.data())
@cases(200)
def test_fuzz_records_with_odd_values(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Read, or refused in one line that names the file; nothing else."""
    read, sound = SOUND[kind]
    key = data.draw(st.sampled_from(sorted(sound)))
    path = tmp_path_factory.mktemp("odd") / "x.json"
    path.write_text(json.dumps([sound | {key: data.draw(odd_values)}]))
    try:
        read(path)
    except UserError as error:
        assert_one_line(error, "x.json")


INSTRUCTIONS = ("a", "b", "c")


def test_alpaca_evals_own_difficulties_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "instruction_difficulty.csv"
    path.write_text(",instruction_difficulty\n0,0.5\n1,-1.25\n2,3\n")
    found = length_controlled.read_difficulty(path, INSTRUCTIONS)
    assert (found.instructions, found.values.tolist(), found.gamed) == (INSTRUCTIONS, [0.5, -1.25, 3], None)
    assert found.of(["c", "a"]).tolist() == [3, 0.5]
    with pytest.raises(UserError, match=r"no difficulty of 1 of 2 instructions, such as 'z'"):
        found.of(["a", "z"])
    with pytest.raises(UserError, match=r":2: numbers its instruction; give .* --prompts"):
        length_controlled.read_difficulty(path, None)
    with pytest.raises(UserError, match=r":4: is of instruction 2, and there are 2"):
        length_controlled.read_difficulty(path, INSTRUCTIONS[:2])


def test_gamed_rows_are_read_with_their_difficulties(tmp_path: Path) -> None:
    path = tmp_path / "df_gamed.csv"
    header = ",model,index,instruction_difficulty,preference,std_delta_len,not_gamed_baseline\n"
    rows = [f"{i},{m},{i % 3},{i % 3}.5,{p},{d},False" for i, (m, p, d) in enumerate([
        ("v", 0.5, 1.0), ("v", 0.25, -1.0), ("v", "", 0.0), ("c", 1.0, 0.0), ("c", 0.0, 2.0), ("c", 0.75, 0.5),
    ])]  # fmt: skip
    path.write_text(header + "\n".join(rows) + "\n")
    found = length_controlled.read_difficulty(path, INSTRUCTIONS)
    assert (found.instructions, found.values.tolist()) == (INSTRUCTIONS, [0.5, 1.5, 2.5])
    assert found.gamed is not None
    assert found.gamed.outcome.tolist() == [0.5, 0.25, 1, 0, 0.75]  # what the judge did not tell is left out
    assert found.gamed.difficulty.tolist() == [0.5, 1.5, 0.5, 1.5, 2.5]
    assert found.gamed.slope.tolist() == pytest.approx([0.76159, -0.76159, 0, 0.96403, 0.46212], abs=1e-4)
    path.write_text(header + rows[0].replace(",0.5,1.0,", ",1.5,1.0,") + "\n")
    with pytest.raises(UserError, match=r":2: preference should be from 0 to 1 in a gamed row, and is 1.5"):
        length_controlled.read_difficulty(path, INSTRUCTIONS)


def test_weights_are_read_of_csv_and_json(tmp_path: Path, shared: Path) -> None:
    published = length_controlled.read_weights(shared / "data" / "alpaca_eval" / "published.json")
    path = tmp_path / "baseline.csv"
    path.write_text(
        "," + ",".join(length_controlled.NAMES.values()) + "\n"
        + "".join(f"{name},{each.phi},{each.gamma},{each.theta}\n" for name, each in published.items())
    )  # fmt: skip
    assert length_controlled.read_weights(path) == published
    assert "gemma-2b-it" in published


def test_the_file_of_a_round_is_that_of_no_other_label() -> None:
    assert files.of_round("a", 0) == "a"
    assert all(re.match(NAME, files.of_round("a", round)) is None for round in range(1, 12))
