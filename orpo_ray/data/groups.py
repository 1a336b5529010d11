"""Records of more, or fewer, than two answers: how they are read.

| format | a record |
|---|---|
| `ranked` | `prompt`; `responses`: a list; `ranks` (1 is best), or `scores` or `ratings` (higher is better), as long |
| `several` | `prompt`, `chosen`; `rejected`: a list of answers |
| `labelled` | `prompt`, `completion` (or `response`); `label`: true, false, 1 or 0 (unpaired, as in TRL) |

Prompts and answers are text, or message lists, all of a record alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from orpo_ray.data.formats import Message, PreferencePair, checked_text, message_list
from orpo_ray.data.records import BadRecord

GroupFormat = Literal["ranked", "several", "labelled"]
MOST_ANSWERS = 64
"""Every pair of so many is 2,016 comparisons."""
_BETTER_FIRST = {"ranks": -1.0, "scores": 1.0, "ratings": 1.0}
_COMPLETIONS = ("completion", "response")
Turns = str | list[Message]


@dataclass(frozen=True, slots=True)
class Answer:
    turns: Turns
    rating: float
    """Higher is better. Only the order counts: a label that names the winner rates it 1 and the others 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt and its answers, in the order of the record."""

    prompt: Turns
    answers: tuple[Answer, ...]
    labelled: bool = False
    """Whether ratings are labels, 1 desirable and 0 not, that say something of each answer by itself."""


def recognise_group(value: dict[str, Any]) -> GroupFormat | None:
    """The format of a record, by its fields; None where it is none of these."""
    if isinstance(value.get("responses"), list):
        return "ranked"
    rejected = value.get("rejected")
    if isinstance(rejected, list) and rejected and all(isinstance(item, str | list) for item in rejected):
        return "several"
    if "label" in value and any(name in value for name in _COMPLETIONS):
        return "labelled"
    return None


def of_pair(pair: PreferencePair) -> Comparison:
    return Comparison(pair.prompt, (Answer(pair.chosen, 1.0), Answer(pair.rejected, 0.0)))


def parse_group(value: dict[str, Any], format: GroupFormat, as_messages: bool) -> Comparison:
    """Read a record. `as_messages`: text becomes messages too, for a template to render.

    Raises `BadRecord`: a missing field, one that is not text or messages, ratings that are no numbers or not as many.
    """
    found, ratings = _READERS[format](value)
    if len(found) > MOST_ANSWERS:
        raise BadRecord("too many answers", f"{len(found)}, where {MOST_ANSWERS} are the most")
    prompt = _turns(value, "prompt", "user")
    answers = [_turns(holder, name, "assistant", where) for holder, name, where in found]
    kinds = {isinstance(turns, str) for turns in (prompt, *answers)}
    if len(kinds) > 1:
        raise BadRecord("unknown shape", "some of prompt and answers are text, the others messages")
    if as_messages and isinstance(prompt, str):
        prompt = [Message(role="user", content=prompt)]
        answers = [[Message(role="assistant", content=str(turns))] for turns in answers]
    rated = tuple(Answer(turns, rating) for turns, rating in zip(answers, ratings, strict=True))
    return Comparison(prompt, rated, labelled=format == "labelled")


Found = list[tuple[dict[str, Any], str, str]]
"""Of each answer what holds it, under which name, and what it is called in messages."""


def _ranked(value: dict[str, Any]) -> tuple[Found, list[float]]:
    responses = _list(value, "responses")
    named = [name for name in _BETTER_FIRST if value.get(name) is not None]
    if len(named) != 1:
        given = " and ".join(named) or f"none of {', '.join(_BETTER_FIRST)}"
        raise BadRecord("no ranking" if not named else "two rankings", f"{given} beside responses")
    numbers = _list(value, named[0])
    if len(numbers) != len(responses):
        raise BadRecord("not as many", f"{len(responses)} responses, {len(numbers)} {named[0]}")
    ratings = [_BETTER_FIRST[named[0]] * _number(each, f"{named[0]}[{i}]") for i, each in enumerate(numbers)]
    return _items(responses, "responses"), ratings


def _several(value: dict[str, Any]) -> tuple[Found, list[float]]:
    rejected = _list(value, "rejected")
    return [(value, "chosen", "chosen"), *_items(rejected, "rejected")], [1.0] + [0.0] * len(rejected)


def _labelled(value: dict[str, Any]) -> tuple[Found, list[float]]:
    label = value.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRecord("no label", f"label is {'null' if label is None else repr(label)[:40]}, not true or false")
    name = next((name for name in _COMPLETIONS if value.get(name) is not None), _COMPLETIONS[0])
    return [(value, name, name)], [float(label)]


_READERS = {"ranked": _ranked, "several": _several, "labelled": _labelled}


def _items(items: list[Any], name: str) -> Found:
    return [({name: item}, name, f"{name}[{i}]") for i, item in enumerate(items)]


def _list(value: dict[str, Any], name: str) -> list[Any]:
    if name not in value:
        raise BadRecord("missing field", name)
    found = value[name]
    if not isinstance(found, list) or not found:
        raise BadRecord("not a list", f"{name} is {'an empty list' if found == [] else type(found).__name__}")
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord("not a number", f"{where} is {'null' if value is None else repr(value)[:40]}")
    return float(value)


def _turns(holder: dict[str, Any], name: str, role: str, where: str | None = None) -> Turns:
    """Text, or messages of which a completion's all are `role`'s, and a prompt's last is not the assistant's."""
    where = where or name
    if name not in holder:
        raise BadRecord("missing field", where)
    if not isinstance(holder[name], list):
        return checked_text(holder[name], where)
    messages = message_list({where: holder[name]}, where)
    if role == "assistant" and any(message["role"] != role for message in messages):
        raise BadRecord("not the assistant's", f"{where} holds messages of other roles")
    if role != "assistant" and messages[-1]["role"] == "assistant":
        raise BadRecord("no question", f"{where} ends with the assistant's message")
    return messages
