"""Prompts with their responses, for scoring: preference pairs, or a prompt beside any number of responses.

| a record | its responses |
|---|---|
| a pair, in any shape that `formats` reads | `chosen`, `rejected` |
| `prompt`; `chosen`, `rejected` or both a list of texts (RewardBench 2) | all of `chosen`, then all of `rejected` |
| `prompt` and `responses` (a list) | its elements |
| `prompt` and `response`, or `instruction` and `output` (AlpacaEval) | that one |

A prompt and a response are text or message lists, each by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.formats import Format, Message, checked_text, message_list, parse, recognise, require_short
from orpo_ray.data.prompts import Prompt, Question, read_each, readable
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.templates import Turns

_TEXTS = ("prompt", "instruction", "chosen", "rejected", "response", "responses", "output")
"""What a record is read for. Its other fields go along."""
_ONE = ("response", "output")


@dataclass(frozen=True, slots=True)
class Responses:
    """A record of the source: a prompt, its responses, and what stood beside them."""

    index: int
    """Position in the source, counted from 0."""
    prompt: Prompt
    """Its `completions` are the responses."""
    chosen: int | None
    """So many of the responses, the first, are each to be above all others; None: nothing is said of that."""
    columns: dict[str, Any]
    """Texts, numbers and truth values of its other fields."""


def read_responses(
    config: PromptsConfig, *, with_messages: bool, progress: Callable[[int], None] | None = None
) -> tuple[list[Responses], Account]:
    """The records of `config.source`, in its order, and their account.

    `with_messages`: read text as messages, too. Raises `UserError` as `prompts.read_prompts` does.
    """
    asked = None if config.format in ("auto", "prompts") else config.format
    format: Format | None = asked  # type: ignore[assignment]

    def read(record: Record, value: dict[str, Any]) -> Responses:
        nonlocal format
        pairs = "chosen" in value or asked is not None
        several = pairs and _are_several(value.get("chosen"), value.get("rejected"))
        if pairs and not several and format is None:
            format = recognise(value)
        shape = format if pairs and not several else None
        as_found = _question(value, shape, as_messages=False)
        as_messages = _question(value, shape, as_messages=True) if with_messages else None
        if not readable(as_found.prompt).strip():
            raise BadRecord("empty prompt")
        require_short(config.max_record_characters, as_found.prompt, *as_found.completions)
        chosen = len(_listed(value["chosen"])) if several else 1 if pairs else None
        columns = _beside(value)
        return Responses(record.index, Prompt(record.location, as_found, as_messages), chosen, columns)

    return read_each(config, read, "response to score", progress)


def _beside(value: dict[str, Any]) -> dict[str, Any]:
    """The fields that go along."""
    found = {}
    for name, each in value.items():
        if name not in _TEXTS and isinstance(each, str | int | float):
            checked_text(name, "the name of a field")
            found[name] = checked_text(each, name) if isinstance(each, str) else each
    return found


def _question(value: dict[str, Any], format: Format | None, *, as_messages: bool) -> Question:
    if format is not None:
        pair = parse(value, format, as_messages)
        return Question(pair.prompt, (pair.chosen, pair.rejected))
    prompt = _prompt(value)
    completions = _completions(value)
    # Messages as soon as one of them is: a text beside them is a turn.
    if as_messages or not all(isinstance(turns, str) for turns in (prompt, *completions)):
        return Question(_turn("user", prompt), tuple(_turn("assistant", turns) for turns in completions))
    return Question(prompt, completions)


def _prompt(value: dict[str, Any]) -> Turns:
    field = next((name for name in ("prompt", "instruction") if name in value), None)
    if field is None:
        raise BadRecord("no prompt", "none of the fields prompt, instruction")
    return _turns(value, field)


def _completions(value: dict[str, Any]) -> tuple[Turns, ...]:
    if "chosen" in value:
        return tuple(
            checked_text(text, f"{name}[{i}]")
            for name in ("chosen", "rejected")
            for i, text in enumerate(_listed(value[name]))
        )
    if "responses" in value:
        items = value["responses"]
        if not isinstance(items, list) or not items:
            raise BadRecord("no response", "responses is no list, or an empty one")
        return tuple(_turns({f"responses[{i}]": item}, f"responses[{i}]") for i, item in enumerate(items))
    field = next((name for name in _ONE if name in value), None)
    if field is None:
        raise BadRecord("no response", "none of the fields chosen, responses, response, output")
    return (_turns(value, field),)


def _turns(value: dict[str, Any], field: str) -> Turns:
    return message_list(value, field) if isinstance(value[field], list) else checked_text(value[field], field)


def _turn(role: str, turns: Turns) -> list[Message]:
    return [Message(role=role, content=turns)] if isinstance(turns, str) else turns


def _are_several(chosen: Any, rejected: Any) -> bool:
    """Whether at least one of them is a list of texts, and the other such a list or a text."""
    sides = (chosen, rejected)
    texts = all(each and all(isinstance(text, str) for text in each) for each in map(_listed, sides))
    return texts and any(isinstance(side, list) for side in sides)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
