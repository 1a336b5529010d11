"""Records of more, or fewer, than two answers: read, kept or left out, every one accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_data_prepare import account_of
from test_data_tokenization import bytes_tokenizer

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.config.data import Reading
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.formats import Answer, Comparison, Message, NoPreference
from orpo_ray.data.formats.reading import Reading as ShapeReading
from orpo_ray.data.formats.shapes import recognise, shape_named
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.prompts import Question, read_prompts
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.data.selection import select, without_repeats
from orpo_ray.data.summary import print_summary
from orpo_ray.errors import UserError

CHAT = [{"role": "user", "content": "Why?"}]


def said(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def read_as(record: dict[str, Any], name: str, *, as_messages: bool) -> Comparison:
    """What the shape of this name reads."""
    return shape_named(name).read(record, ShapeReading(Account(), as_messages))


RECORDS: dict[str, tuple[dict[str, Any], list[tuple[Any, float]]]] = {
    "ranked": ({"prompt": "Why?", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}, [("a", -2), ("b", -1), ("c", -2)]),
    "ranked by scores": ({"prompt": "Why?", "responses": ["a", "b"], "scores": [0.5, 3]}, [("a", 0.5), ("b", 3)]),
    "ranked by ratings": (
        {"prompt": CHAT, "responses": [said("a"), said("b")], "ratings": [1, 4.5], "scores": None},
        [(said("a"), 1), (said("b"), 4.5)],
    ),
    "several": ({"prompt": "Why?", "chosen": "a", "rejected": ["b", "c"]}, [("a", 1), ("b", 0), ("c", 0)]),
    "several of messages": (
        {"prompt": CHAT, "chosen": said("a"), "rejected": [said("b")]}, [(said("a"), 1), (said("b"), 0)],
    ),
    "labelled": ({"prompt": "Why?", "completion": "a", "label": True}, [("a", 1)]),
    "labelled by a number": ({"prompt": "Why?", "response": "a", "label": 0}, [("a", 0)]),
    "labelled messages": ({"prompt": CHAT, "completion": said("a"), "label": False}, [(said("a"), 0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_each_shape_is_recognised_and_read(name: str) -> None:
    record, answers = RECORDS[name]
    format = recognise(record).name
    assert format == name.split()[0]
    found = read_as(record, format, as_messages=False)
    expected = tuple(Answer(*each) for each in answers)
    assert found == Comparison(record["prompt"], expected, labelled=format == "labelled")
    as_messages = read_as(record, format, as_messages=True)
    assert as_messages.prompt == CHAT and all(isinstance(answer.turns, list) for answer in as_messages.answers)


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "missing field: prompt": ("ranked", {"responses": ["a", "b"], "ranks": [1, 2]}),
    "no ranking: none of ranks, scores, ratings beside responses": ("ranked", {"prompt": "q", "responses": ["a", "b"]}),
    "two rankings: ranks and scores beside responses": ("ranked", {
        "prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "scores": [1, 2],
    }),
    "not as many: 2 responses, 3 ranks": ("ranked", {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2, 3]}),
    "not a number: ranks[1] is None": ("ranked", {"prompt": "q", "responses": ["a", "b"], "ranks": [1, None]}),
    "not a number: scores[0] is nan": ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": [float("nan"), 1]}),
    "not a number: scores[0] is True": ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": [True, 1]}),
    "not a list: ranks is int": ("ranked", {"prompt": "q", "responses": ["a", "b"], "ranks": 3}),
    "not a list: responses is an empty list": ("ranked", {"prompt": "q", "responses": [], "ranks": []}),
    "not text: responses[1] is int": ("ranked", {"prompt": "q", "responses": ["a", 3], "ranks": [1, 2]}),
    "not text: prompt is null": ("several", {"prompt": None, "chosen": "a", "rejected": ["b"]}),
    "not the assistant's: rejected[0] holds": ("several", {"prompt": CHAT, "chosen": said("a"), "rejected": [CHAT]}),
    "no label: label is null": ("labelled", {"prompt": "q", "completion": "a", "label": None}),
    "no label: label is 'yes'": ("labelled", {"prompt": "q", "completion": "a", "label": "yes"}),
    "no label: label is 2": ("labelled", {"prompt": "q", "completion": "a", "label": 2}),
    "too many answers: 65, where 64": ("several", {"prompt": "q", "chosen": "a", "rejected": [*map(str, range(64))]}),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_such_record_is_told(reason: str) -> None:
    name, record = BAD[reason]
    with pytest.raises(BadRecord) as error:
        read_as(record, name, as_messages=False)
    assert str(error.value).startswith(reason)


def chosen_from(*answers: tuple[str, float], reading: Reading = "every_pair") -> tuple[Any, Counter[str]]:
    account = Account()
    try:
        found: Any = select(Comparison("q", tuple(Answer(*each) for each in answers)), reading, account)
    except NoPreference as none:
        found = none.reason
    return found, account.noted


def test_which_answers_are_kept() -> None:
    ranked = [("c", 1.0), ("a", 9.0), ("b", 5.0), ("d", 1.0), ("e", 9.0)]
    assert chosen_from(*ranked) == ((["a", "e", "b", "c", "d"], (0, 0, 1, 2, 2)), {})
    assert chosen_from(*ranked, reading="best_against_each") == chosen_from(*ranked)
    assert chosen_from(*ranked, reading="best_against_worst") == ((["a", "c"], (0, 1)), {})
    found, noted = chosen_from(*ranked, reading="labels")
    assert found == (["a", "e", "c", "d"], (0, 0, 1, 1)) and list(noted) == [
        "hold answers between the best and the worst, neither desirable nor not, which are left out"
    ]


def test_what_teaches_nothing() -> None:
    assert chosen_from(("a", 1), ("b", 1), ("c", 1)) == ("tie", {})
    assert chosen_from(("a", 1)) == ("one answer", {})
    assert chosen_from(("a", 1), (" ", 0)) == ("empty response", {})
    assert chosen_from(("a", 1), ("a", 0)) == ("chosen = rejected", {})
    found, noted = chosen_from(("a", 2), (" ", 1), ("b", 0))
    assert found == (["a", "b"], (0, 1)) and list(noted) == ["hold answers without text, which are left out"]
    found, noted = chosen_from(("a", 0), ("b", 1), ("a", 2))
    assert found == (["a", "b"], (0, 1))
    assert list(noted) == ["hold an answer twice, of which the better rated is read"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=7))
def test_no_two_answers_that_are_left_are_equal(drawn: list[tuple[int, int]]) -> None:
    drawn = sorted(drawn, key=lambda each: each[1])
    items, ranks = without_repeats([item for item, _ in drawn], [rank for _, rank in drawn])
    assert sorted(items) == sorted({item for item, _ in drawn})
    first = dict(reversed(drawn))
    assert ranks == [first[item] for item in items]


def config(folder: Path, *overrides: str) -> TrainConfig:
    mapping = {
        "name": "groups", "model": {"name_or_path": "toy"}, "storage": {"path": str(folder)},
        "data": {"train": str(folder / "data.jsonl"), "max_length": 40, "max_prompt_length": 20, "eval_fraction": 0.3},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


def prepared(folder: Path, records: list[dict[str, Any]], *overrides: str) -> PreparedData:
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return prepare(config(folder, *overrides), bytes_tokenizer())


def texts(data: PreparedData) -> list[tuple[str, list[str], list[int]]]:
    """Of training and held-out records, in the order of the file: prompt, responses, ranks."""
    found = {}
    for part in (data.train, data.eval):
        for i, record in enumerate(part.record_ids.tolist()):
            prompt, *responses = (bytes_tokenizer().decode(ids, skip_special_tokens=True) for ids in part.pair(i))
            ranks = part.ranks(np.array([i]))[0].tolist()
            found[record] = (prompt, responses, [rank for rank in ranks if rank >= 0])
    return [found[record] for record in sorted(found)]


RANKED = [
    {"prompt": f"Question {i}?", "responses": ["best", "worst", "good", "good too"], "ratings": [9, 1, 5, 5]}
    for i in range(4)
]


@pytest.mark.parametrize(
    ("overrides", "responses", "ranks", "rule"),
    [
        (["objective.name=reward"], ["best", "good", "good too", "worst"], [0, 1, 1, 2], "every_pair"),
        (
            ["data.comparisons=best_against_each"], ["best", "good", "good too", "worst"], [0, 1, 1, 2],
            "best_against_each",
        ),
        (["data.comparisons=best_against_worst"], ["best", "worst"], [0, 1], "best_against_worst"),
        (["objective.name=sft"], ["best", "good", "good too", "worst"], [0, 1, 1, 2], "best_against_worst"),
        (["objective.name=kto"], ["best", "worst"], [0, 1], "labels"),
    ],
)  # fmt: skip
def test_what_an_objective_is_given(
    tmp_path: Path, overrides: list[str], responses: list[str], ranks: list[int], rule: str
) -> None:
    data = prepared(tmp_path, RANKED, *overrides)
    assert texts(data) == [(f"Question {i}?", responses, ranks) for i in range(4)]
    assert data.train.rule == data.eval.rule == rule
    assert (data.train.mismatched is not None) == (rule == "labels")
    assert prepare(config(tmp_path, *overrides), bytes_tokenizer()).digest == data.digest, "found in the cache"


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    """Answers that are the same once cut are compared no more, and what is left of a record stays."""
    long = "a" * 60
    records = [
        *RANKED,
        {"prompt": "tied", "responses": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "cut", "responses": [f"{long}1", f"{long}2"], "ranks": [1, 2]},
        {"prompt": "half cut", "responses": [f"{long}1", f"{long}2", "b"], "ranks": [1, 2, 3]},
        {"prompt": "empty", "responses": ["a", "b", ""], "ranks": [1, 2, 3]},
        {"prompt": "bad", "responses": ["a", "b"], "ranks": [1]},
    ]
    data = prepared(tmp_path, records, "data.on_bad_record=quarantine")
    account = account_of(data)
    assert account.dropped == {"tie": 1, "chosen = rejected once tokenised and cut": 1}
    assert (account.kept, account.quarantined) == (6, {"not as many": 1})
    assert account.remarks() == ["1 of 9 records hold answers without text, which are left out"]
    assert data.remarks == (f"{tmp_path}/data.jsonl: {account.remarks()[0]}",)
    found = {prompt: (len(responses), ranks) for prompt, responses, ranks in texts(data)}
    assert found["half cut"] == (2, [0, 1]) and found["empty"] == (2, [0, 1])
    assert (account.cut_prompts, account.cut_chosen, account.cut_rejected) == (0, 1, 0)
    with (tmp_path / "out").open("w") as out:
        console = Console(width=110, record=True, file=out)
        print_summary(config(tmp_path, "data.on_bad_record=quarantine"), console, bytes_tokenizer())
        printed = console.export_text()
    assert "1 of 9 records hold answers without text, which are left out" in printed
    assert "prompts with" in printed and "⟦rank 1⟧best" in printed and "⟦rank 3⟧worst" in printed


def test_labels_are_for_kto(tmp_path: Path) -> None:
    records = [{"prompt": f"Question {i}?", "completion": f"answer {i}", "label": i % 3 == 0} for i in range(9)]
    with pytest.raises(UserError, match=r"data\.jsonl:1: one answer: a label alone .* objective=kto"):
        prepared(tmp_path, records)
    data = prepared(tmp_path, records, "objective.name=kto")
    assert texts(data) == [(f"Question {i}?", [f"answer {i}"], [int(i % 3 != 0)]) for i in range(9)]
    assert data.train.amount().endswith("responses")


def test_pairs_are_labelled_for_kto(tmp_path: Path) -> None:
    records = [{"prompt": f"Question {i}?", "chosen": "good", "rejected": "bad"} for i in range(9)]
    data = prepared(tmp_path, records, "objective.name=kto")
    assert texts(data) == [(f"Question {i}?", ["good", "bad"], [0, 1]) for i in range(9)]
    assert not data.train.are_pairs and data.train.compared().responses.shape == (2 * len(data.train), 1)
    with pytest.raises(
        UserError, match=r"data\.jsonl: KTO.s reference point .* one prompt alone is held out of it; raise data\.eval"
    ):
        prepared(tmp_path, records[:3], "objective.name=kto", "data.eval_fraction=0.1")


@pytest.mark.parametrize("name", RECORDS)
def test_an_evaluation_asks_their_prompts(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(RECORDS[name][0]) + "\n")
    prompts, _ = read_prompts(PromptsConfig(source=str(tmp_path / "x.jsonl")), with_messages=True)
    answers = RECORDS[name][1]
    ends = [] if name.startswith("labelled") else [pick(answers, key=lambda each: each[1])[0] for pick in (max, min)]
    assert prompts[0].as_messages == Question(CHAT, tuple(said(e) if isinstance(e, str) else e for e in ends))
