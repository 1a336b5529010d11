"""Shapes of a record: recognised, read, and refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data.formats import PreferencePair, hh_messages, parse, recognise
from orpo_ray.data.records import BadRecord


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
    "extra keys of a message": (
        "conversational",
        {"chosen": [{**m, "weight": 1} for m in LISTS["chosen"]], "rejected": LISTS["rejected"]},
        PAIR,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    name, value, expected = SHAPES[shape]
    assert recognise(value) == name
    assert parse(value, recognise(value), as_messages=False) == expected


def test_text_as_messages() -> None:
    pair = parse(HH, "hh-rlhf", as_messages=True)
    assert pair.prompt == [user("Hi"), assistant("Hello"), user("Why?")]
    assert (pair.chosen, pair.rejected) == ([assistant("Because.")], [assistant("No")])
    pair = parse({"prompt": " p", "chosen": "c ", "rejected": "r"}, "plain", as_messages=True)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user(" p")], [assistant("c ")], [assistant("r")])


def test_the_prompt_is_what_both_share_short_of_a_last_message() -> None:
    turns = [user("a"), assistant("b"), user("c")]
    pair = parse({"chosen": [*turns, assistant("d")], "rejected": [*turns, assistant("e")]}, "conversational", False)
    assert (pair.prompt, pair.chosen) == (turns, [assistant("d")])
    same = parse({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}, "argilla", False)
    assert same.prompt == [user("a")]
    assert same.chosen == same.rejected == [assistant("b")]
    longer = parse({"chosen": turns[:2], "rejected": [*turns, assistant("d")]}, "conversational", False)
    assert (longer.prompt, longer.chosen) == ([user("a")], [assistant("b")])
    assert longer.rejected == [assistant("b"), user("c"), assistant("d")]


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
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no prompt"),
    ({"prompt": "Who?", **LISTS}, "prompts differ: prompt is none of the messages"),
    ({"prompt": [user("Who?")], **LISTS}, "prompts differ: chosen and rejected do not begin"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_records_say_why(value: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        parse(value, recognise(value), as_messages=False)


def test_a_named_format_is_held_to() -> None:
    with pytest.raises(BadRecord, match="no assistant turn"):
        parse({"prompt": "p", "chosen": "c", "rejected": "r"}, "hh-rlhf", as_messages=False)
    with pytest.raises(BadRecord, match="not messages: chosen is str"):
        parse({"prompt": "p", "chosen": "c", "rejected": "r"}, "conversational", as_messages=False)


@given(st.text(), st.text(), st.text())
def test_hh_text_is_kept_verbatim(prompt: str, chosen: str, rejected: str) -> None:
    """Prompt and response joined are the dialogue, and the cut is at the last assistant turn."""
    value = {"chosen": f"{prompt}\n\nAssistant:{chosen}", "rejected": f"{prompt}\n\nAssistant:{rejected}"}
    pair = parse(value, "hh-rlhf", as_messages=False)
    assert pair == PreferencePair(f"{prompt}\n\nAssistant:", chosen, rejected)


def test_hh_dialogues_as_messages() -> None:
    assert hh_messages("\n\nHuman: a: b\n\nc\n\nAssistant: Human: d\n\nHuman:e ") == [
        user("a: b\n\nc"),
        assistant("Human: d"),
        user("e"),
    ]
    with pytest.raises(BadRecord, match="not a dialogue"):
        hh_messages("Once upon a time\n\nHuman: hi")
