"""Shapes that hold message lists."""

from __future__ import annotations

import re
from typing import Any

from orpo_ray.data.formats.comparison import Comparison, asked, parted, rated
from orpo_ray.data.formats.messages import Message, readable, text_field, turn
from orpo_ray.data.formats.reading import Reading, number, unknown_label
from orpo_ray.data.formats.texts import CHOSEN_FIRST, note_equal_ratings
from orpo_ray.data.json_values import decode
from orpo_ray.data.records import BadRecord


def conversational(value: dict[str, Any], reading: Reading) -> Comparison:
    """`chosen` and `rejected`, which repeat the prompt or follow it; `prompt`: messages, text, or absent."""
    answers = [reading.messages(value, name) for name in ("chosen", "rejected")]
    note_equal_ratings(value, reading)
    given = value.get("prompt")
    if not isinstance(given, str):
        opening = reading.messages(value, "prompt") if given is not None else []
        return parted(opening, answers, CHOSEN_FIRST)
    text = text_field(value, "prompt")
    if all(messages[0]["role"] == "assistant" for messages in answers):
        return parted(turn("user", text), answers, CHOSEN_FIRST)
    comparison = parted([], answers, CHOSEN_FIRST)
    assert not isinstance(comparison.prompt, str)
    if text.strip() not in {message["content"].strip() for message in comparison.prompt}:
        raise BadRecord("prompts differ", "prompt is none of the messages that chosen and rejected share")
    return comparison


def sharegpt(value: dict[str, Any], reading: Reading) -> Comparison:
    opening = reading.messages(value, "conversations")
    return parted(opening, [reading.messages(value, name) for name in ("chosen", "rejected")], CHOSEN_FIRST)


def helpsteer3(value: dict[str, Any], reading: Reading) -> Comparison:
    texts = [text_field(value, name) for name in ("response1", "response2")]
    return asked(reading.messages(value, "context"), texts, strength(value, "overall_preference", reading))


def strength(value: dict[str, Any], column: str, reading: Reading) -> list[float]:
    """HelpSteer's scale, -3 (the first is much better) to 3 (the second is), as ratings of the two."""
    if value.get(column) in (None, ""):
        reading.none_wins("no winner")
        return [0.0, 0.0]
    found = number(value, column)
    if abs(found) > 3:
        raise unknown_label(column, found)
    return [-found, found]


_ARENA: dict[Any, list[float]] = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0]}
_ARENA_TIES = ("tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad")


def arena(value: dict[str, Any], reading: Reading) -> Comparison:
    conversations = [reading.messages(value, name) for name in ("conversation_a", "conversation_b")]
    winner = value.get("winner")
    ratings = [0.0, 0.0]
    if winner in (None, ""):
        reading.none_wins("no winner")
    elif isinstance(winner, str) and winner in _ARENA_TIES:
        reading.none_wins("tie")
    elif isinstance(winner, str) and winner in _ARENA:
        ratings = _ARENA[winner]
    else:
        raise unknown_label("winner", winner)
    return parted([], conversations, ratings)


_PRINTED_LIST = re.compile(r"""(?s)\s*\[\s*['"].*['"]\s*\]\s*""")
_INDICATORS = ("winner_model_a", "winner_model_b", "winner_tie")


def arena_55k(value: dict[str, Any], reading: Reading) -> Comparison:
    """A CSV file of Kaggle's: questions, and answers of two models, as JSON lists of texts."""
    said = [number(value, name) for name in _INDICATORS]
    if sorted(said) == [0, 0, 0]:
        reading.none_wins("no winner")
    elif sorted(said) != [0, 0, 1]:
        raise BadRecord("unknown label", f"not one of {', '.join(_INDICATORS)} is 1")
    if said[2]:
        reading.none_wins("tie")
    questions, *answers = (_texts(value, name) for name in ("prompt", "response_a", "response_b"))
    if {len(questions)} != {len(each) for each in answers}:
        raise BadRecord("not a dialogue", "prompt, response_a and response_b are lists of different lengths")
    conversations = [
        [m for question, answer in zip(questions, each, strict=True)
         for m in (*turn("user", question), *turn("assistant", answer))]
        for each in answers
    ]  # fmt: skip
    return parted([], conversations, said[:2])


def _texts(value: dict[str, Any], column: str) -> list[str]:
    """A list of texts, or the JSON text of one; other text is one of them.

    Raises `BadRecord` for such a list as Python prints it, too.
    """
    found = value.get(column)
    if isinstance(found, str):
        items = decode(found) if found.lstrip().startswith("[") else [found]
        if isinstance(items, BadRecord):
            if _PRINTED_LIST.fullmatch(found):
                raise BadRecord("not text", f"{column} is text that begins as a list of texts, and is none: {items}")
            items = [found]
    else:
        items = found
    if not isinstance(items, list) or not items:
        raise BadRecord("not text", f"{column} is no list of texts")
    return [text_field({f"{column}[{i}]": text}, f"{column}[{i}]") for i, text in enumerate(items)]


def prism(value: dict[str, Any], reading: Reading) -> Comparison:
    """The first question of a conversation, to which up to four models answered; `if_chosen` outranks `score`."""
    items = value.get("conversation_history")
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise BadRecord("not messages", "conversation_history is no list of messages")
    turns = [number(item, "turn") for item in items]
    opening = min(turns)
    first = [item for item, at in zip(items, turns, strict=True) if at == opening]
    if len(first) < len(items):
        reading.account.noted["have later turns, which are not read"] += 1
    labels = ("turn", "score", "if_chosen")
    spoken = [{key: inner for key, inner in item.items() if key not in labels} for item in first]
    messages = reading.messages({"conversation_history": spoken}, "conversation_history")
    prompt: list[Message] = []
    answers: list[list[Message]] = []
    ratings: list[float] = []
    chosen = 0
    for item, message in zip(first, messages, strict=True):
        if message["role"] != "assistant":
            prompt.append(message)
            continue
        picked = item.get("if_chosen")
        if not isinstance(picked, bool):
            raise unknown_label("if_chosen", picked)
        chosen += picked
        answers.append([message])
        ratings.append(number(item, "score") + (1000.0 if picked else 0.0))
    if not prompt or len(answers) < 2:
        raise BadRecord("no answers to compare", "conversation_history has no first question with two answers")
    if chosen != 1:
        reading.none_wins("no winner")
    return rated(prompt, [*answers], ratings)


def without_system_twice(messages: list[Message], system: str) -> list[Message]:
    """`messages` behind a system turn. Raises `BadRecord` where they begin with another one."""
    if messages[0]["role"] != "system":
        return [*turn("system", system), *messages]
    if messages[0]["content"].strip() != system.strip():
        raise BadRecord(
            "two system turns",
            f"the messages begin with {readable(messages[:1])!r:.60}; the key unread leaves the column out",
        )
    return messages
