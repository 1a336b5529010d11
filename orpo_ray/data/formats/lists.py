"""Shapes of more, or fewer, than two answers that come from no one source: lists that are ranked or rated, several
rejected answers, and answers with a label of their own. Prompts and answers are text or message lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orpo_ray.data.formats.columns import as_message_list, holds, missing
from orpo_ray.data.formats.comparison import Comparison, rated
from orpo_ray.data.formats.messages import Turns, checked_text, spoken
from orpo_ray.data.formats.reading import Reading, number
from orpo_ray.data.records import BadRecord

MOST_ANSWERS = 64
"""Every pair of so many is 2,016 comparisons."""
BETTER = {"ranks": -1.0, "scores": 1.0, "ratings": 1.0}
"""The columns that say how good each of `responses` is, and whether the larger is the better."""
COMPLETIONS = ("completion", "response")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""As CSV has them, where all is text."""


def ranked(value: dict[str, Any], reading: Reading) -> Comparison:
    responses = _list(value, "responses")
    named = [name for name in BETTER if value.get(name) is not None]
    if len(named) != 1:
        given = " and ".join(named) or f"none of {', '.join(BETTER)}"
        raise BadRecord("two rankings" if named else "no ranking", f"{given} beside responses")
    column = named[0]
    numbers = _list(value, column)
    if len(numbers) != len(responses):
        raise BadRecord("not as many", f"{len(responses)} responses, {len(numbers)} {column}")
    ratings = [BETTER[column] * number({f"{column}[{i}]": each}, f"{column}[{i}]") for i, each in enumerate(numbers)]
    return _comparison(value, _items(responses, "responses"), ratings, reading)


def several(value: dict[str, Any], reading: Reading) -> Comparison:
    rejected = _list(value, "rejected")
    found = [("chosen", value.get("chosen")), *_items(rejected, "rejected")]
    return _comparison(value, found, [1.0] + [0.0] * len(rejected), reading)


def labelled(value: dict[str, Any], reading: Reading) -> Comparison:
    label = value.get("label")
    if isinstance(label, str):
        label = _LABELS.get(label.strip().lower(), label)
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRecord("no label", f"label is {'null' if label is None else repr(label)[:40]}, not true or false")
    name = next((name for name in COMPLETIONS if value.get(name) is not None), COMPLETIONS[0])
    for other in COMPLETIONS:
        if other != name and holds(value.get(other)):
            reading.account.note_unread(other)
    return replace(_comparison(value, [(name, value.get(name))], [float(label)], reading), labelled=True)


def _comparison(
    value: dict[str, Any], found: list[tuple[str, Any]], ratings: list[float], reading: Reading
) -> Comparison:
    """`found`: of each answer what it is called in messages, and what is there."""
    if len(found) > MOST_ANSWERS:
        raise BadRecord("too many answers", f"{len(found)}, where {MOST_ANSWERS} are the most")
    if "prompt" not in value:
        raise missing(value, "prompt")
    prompt = _turns(value["prompt"], "prompt", reading)
    answers = [_turns(answer, where, reading) for where, answer in found]
    if not reading.as_messages and all(isinstance(turns, str) for turns in (prompt, *answers)):
        return rated(prompt, answers, ratings)
    # Messages as soon as one of them is: a text beside them is a turn.
    answered = [spoken("assistant", turns) for turns in answers]
    for (where, _), turns in zip(found, answered, strict=True):
        if any(message["role"] != "assistant" for message in turns):
            raise BadRecord("not the assistant's", f"{where} holds a turn of another role")
    return rated(spoken("user", prompt), [*answered], ratings)


def _items(items: list[Any], name: str) -> list[tuple[str, Any]]:
    return [(f"{name}[{i}]", item) for i, item in enumerate(items)]


def _list(value: dict[str, Any], name: str) -> list[Any]:
    if name not in value:
        raise missing(value, name)
    found = value[name]
    if not isinstance(found, list) or not found:
        raise BadRecord("not a list", f"{name} is {'an empty list' if found == [] else type(found).__name__}")
    return found


def _turns(found: Any, where: str, reading: Reading) -> Turns:
    if isinstance(found, str | dict):
        found = as_message_list(found, where) or found
    return reading.messages({where: found}, where) if isinstance(found, list) else checked_text(found, where)
