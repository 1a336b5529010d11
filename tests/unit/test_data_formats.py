"""Shapes of a record: recognised, read, and refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.config.records import RecordsConfig
from orpo_ray.data.formats import PreferencePair, RecordReader
from orpo_ray.data.formats.shapes import recognise
from orpo_ray.data.formats.texts import hh_messages
from orpo_ray.data.records import Account, BadRecord


def read(value: dict[str, Any], format: str = "auto", as_messages: bool = False, **settings: Any) -> PreferencePair:
    reader = RecordReader(RecordsConfig(**settings), format, Account(), as_messages=as_messages)
    return reader.comparison(value).pair()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because. \n",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:No",
}
LISTS = {"chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No")]}
PAIR = PreferencePair([user("Why?")], [assistant("Because.")], [assistant("No")])  # type: ignore[list-item]
SHAPES: dict[str, tuple[str, dict[str, Any], PreferencePair]] = {
    "hh": (
        "hh-rlhf",
        HH,
        PreferencePair("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:", " Because. \n", "No"),
    ),
    "plain": (
        "plain",
        {"prompt": "Why? ", "chosen": " b", "rejected": "n\n", "score": float("nan"), "id": None},
        PreferencePair("Why? ", " b", "n\n"),
    ),
    "ultrafeedback": ("ultrafeedback", {"prompt": "Why?", "prompt_id": "x", "messages": [], **LISTS}, PAIR),
    "argilla": ("argilla", {"prompt": "Why?", "chosen-rating": 4.5, "chosen-model": "m", **LISTS}, PAIR),
    "conversational, implicit prompt": ("conversational", LISTS, PAIR),
    "conversational, explicit prompt": (
        "conversational",
        {"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No")]},
        PAIR,
    ),
    "conversational, prompt twice": ("conversational", {"prompt": [user("Why?")], **LISTS}, PAIR),
    "text prompt, completions alone": (
        "ultrafeedback",
        {"prompt": "Why?", "chosen": [assistant("Because.")], "rejected": [assistant("No")]},
        PAIR,
    ),
    "messages asked, text answered": (
        "plain",
        {"prompt": [user("Why?")], "chosen": "Because.", "rejected": "No"},
        PAIR,
    ),
    "extra keys of a message": (
        "conversational",
        {"chosen": [{**m, "weight": 1} for m in LISTS["chosen"]], "rejected": LISTS["rejected"]},
        PAIR,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    name, value, expected = SHAPES[shape]
    assert recognise(value).name == name
    assert read(value) == expected


def test_text_as_messages() -> None:
    pair = read(HH, "hh-rlhf", as_messages=True)
    assert pair.prompt == [user("Hi"), assistant("Hello"), user("Why?")]
    assert (pair.chosen, pair.rejected) == ([assistant("Because.")], [assistant("No")])
    pair = read({"prompt": " p", "chosen": "c ", "rejected": "r"}, "plain", as_messages=True)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user(" p")], [assistant("c ")], [assistant("r")])


def test_the_prompt_is_what_both_share_short_of_a_last_message() -> None:
    turns = [user("a"), assistant("b"), user("c")]
    pair = read({"chosen": [*turns, assistant("d")], "rejected": [*turns, assistant("e")]})
    assert (pair.prompt, pair.chosen) == (turns, [assistant("d")])
    same = read({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}, "argilla")
    assert same.prompt == [user("a")]
    assert same.chosen == same.rejected == [assistant("b")]
    longer = read({"chosen": turns[:2], "rejected": [*turns[:2], assistant("d")]})
    assert (longer.prompt, longer.chosen) == ([user("a")], [assistant("b")])
    assert longer.rejected == [assistant("b"), assistant("d")]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "missing field: chosen"),
    ({"chosen": "c", "prompt": "p"}, "missing field: rejected"),
    ({"chosen": "c", "rejected": "r"}, "missing field: prompt"),
    ({"chosen": None, "rejected": "r", "prompt": "p"}, "not text: chosen is null"),
    ({"chosen": "c", "rejected": 5, "prompt": "p"}, "not text: rejected is int"),
    ({"chosen": "c", "rejected": float("nan"), "prompt": "p"}, "not text: rejected is float"),
    ({"chosen": "c", "rejected": "r", "prompt": 3}, "not text: prompt is int"),
    (
        {"chosen": "c \ud83d", "rejected": "r", "prompt": "p"},
        "invalid Unicode: half of a surrogate pair in chosen",
    ),
    ({"chosen": "c", "rejected": [assistant("r")], "prompt": "p"}, "unknown shape"),
    ({**HH, "chosen": "\n\nHuman: Hi\n\nAssistant: No"}, "prompts differ"),
    ({"chosen": [], "rejected": [assistant("r")]}, "not messages: chosen is an empty list"),
    ({"chosen": ["c"], "rejected": [assistant("r")]}, r"not messages: chosen\[0\] has no role and content"),
    (
        {**LISTS, "chosen": [user("Why?"), {"role": "assistant", "content": None}]},
        r"chosen\[1\].content is null",
    ),
    ({**LISTS, "chosen": [user("Who?"), assistant("Me")]}, "prompts differ: message 0"),
    ({**LISTS, "chosen": [user("Why?"), user("Why?")]}, "prompts differ: message 1"),
    (
        {"chosen": LISTS["chosen"], "rejected": [user("Why?"), assistant("No"), user("c"), assistant("d")]},
        "parts before the last turn: the answers differ from message 1 on, and message 2 is of the role 'user'",
    ),
    (
        {"chosen": LISTS["chosen"], "rejected": [user("Why?"), assistant(""), {"role": "tool", "content": "1"}]},
        "parts before the last turn: .* message 2 is of the role 'tool'",
    ),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no prompt"),
    ({"prompt": "Who?", **LISTS}, "prompts differ: prompt is none of the messages"),
    ({"prompt": [user("Who?")], **LISTS}, "prompts differ: chosen and rejected do not begin"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_records_say_why(value: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        read(value)


def test_a_named_format_is_held_to() -> None:
    with pytest.raises(BadRecord, match="no assistant turn"):
        read({"prompt": "p", "chosen": "c", "rejected": "r"}, "hh-rlhf")
    with pytest.raises(BadRecord, match="not messages: chosen is str"):
        read({"prompt": "p", "chosen": "c", "rejected": "r"}, "conversational")


@given(st.text(), st.text(), st.text())
def test_hh_text_is_kept_verbatim(prompt: str, chosen: str, rejected: str) -> None:
    """Prompt and response joined are the dialogue, and the cut is at the last assistant turn."""
    value = {"chosen": f"{prompt}\n\nAssistant:{chosen}", "rejected": f"{prompt}\n\nAssistant:{rejected}"}
    pair = read(value, "hh-rlhf")
    assert pair == PreferencePair(f"{prompt}\n\nAssistant:", chosen, rejected)


def test_hh_dialogues_as_messages() -> None:
    assert hh_messages("\n\nHuman: a: b\n\nc\n\nAssistant: Human: d\n\nHuman:e ") == [
        user("a: b\n\nc"),
        assistant("Human: d"),
        user("e"),
    ]
    with pytest.raises(BadRecord, match="not a dialogue"):
        hh_messages("Once upon a time\n\nHuman: hi")
