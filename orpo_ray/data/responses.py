"""Prompts with their responses, for scoring: preference pairs, or a prompt beside any number of responses.

| a record | its responses |
|---|---|
| a pair, in any shape that `formats` reads | `chosen`, `rejected` |
| `prompt`; `chosen`, `rejected` or both a list of texts (RewardBench 2) | all of `chosen`, then all of `rejected` |
| `prompt`, `responses` (a list) and `ranks`, `scores` or `ratings` | its elements, the best first |
| `prompt` and `responses` without these | its elements |
| `prompt` and `response`, or `instruction` and `output` (AlpacaEval) | that one |

A prompt and a response are text or message lists, each by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.formats import RecordReader, Turns, require_short
from orpo_ray.data.formats.columns import as_message_list, holds
from orpo_ray.data.formats.lists import BETTER
from orpo_ray.data.formats.messages import checked_text, message_list, readable, spoken
from orpo_ray.data.prompts import Prompt, Question, read_each
from orpo_ray.data.records import Account, BadRecord, Record

_OWN = ("responses", "response", "output")
"""Fields of responses that are no pair; the first that is there is read."""
_TEXTS = ("prompt", "instruction", "chosen", "rejected", *_OWN)
"""What a record is read for. Its other fields go along."""


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
    account = Account()
    along: set[str] = set()
    as_found, as_messages = (ResponseReader(config, as_messages=as_messages) for as_messages in (False, True))

    def read(record: Record, value: dict[str, Any]) -> Responses:
        found, chosen = as_found(value)
        spoken = as_messages(value)[0] if with_messages else None
        require_short(config.max_record_characters, found.prompt, found.tools, *found.completions)
        beside = _beside(value)
        along.update(beside)
        return Responses(record.index, Prompt(record.location, found, spoken), chosen, beside)

    records = read_each(config, account, read, "response to score", progress)
    account.noted += as_found.account.noted
    account.unread += Counter({name: count for name, count in as_found.account.unread.items() if name not in along})
    account.said += as_found.remarks()
    return records, account


class ResponseReader:
    """Reads records as prompts with their responses, all in one form."""

    def __init__(self, config: PromptsConfig, *, as_messages: bool) -> None:
        self._as_messages, self._asked = as_messages, config.format
        self.account = account = Account()
        """What is not read, some of which goes along, and what was decided."""
        self._roles, self._unread = config.roles, config.unread or ()
        self._pairs = RecordReader(config, config.format, account, as_messages=as_messages, may_only_ask=True)
        self._prompts = RecordReader(config, "prompts", account, as_messages=as_messages, may_only_ask=True)

    def remarks(self) -> list[str]:
        """As `RecordReader.remarks`."""
        return [remark for remark in self._pairs.remarks() if remark in self._prompts.remarks()]

    def __call__(self, value: dict[str, Any]) -> tuple[Question, int | None]:
        """The question, and how many of its responses, the first, are the better ones."""
        own = next((name for name in _OWN if name in value and name not in self._unread), None)
        if own is not None and "chosen" not in value and not self._is_ranked(value, own):
            question = self._with_responses(value, own)
            chosen = None
        else:
            comparison = self._pairs.comparison(value)
            best = max((answer.rating for answer in comparison.answers), default=0.0)
            ordered = sorted(comparison.answers, key=lambda answer: answer.rating < best)
            chosen = sum(answer.rating == best for answer in ordered)
            if not ordered:
                raise BadRecord("no response", f"none of the fields chosen, {', '.join(_OWN)}")
            if chosen == len(ordered):
                chosen = None
            question = Question(comparison.prompt, tuple(answer.turns for answer in ordered), comparison.tools)
        if not readable(question.prompt).strip():
            raise BadRecord("empty prompt")
        return question, chosen

    def _is_ranked(self, value: dict[str, Any], own: str) -> bool:
        """Whether the record says how good each of its responses is."""
        if self._asked != "auto" or own != "responses" or "prompt" not in value:
            return self._asked not in ("auto", "prompts")
        return any(value.get(name) is not None and name not in self._unread for name in BETTER)

    def _with_responses(self, value: dict[str, Any], field: str) -> Question:
        own = [name for name in _OWN if name not in self._unread]
        asked = self._prompts.comparison({name: each for name, each in value.items() if name not in own})
        for other in own:
            if other != field and holds(value.get(other)):
                self.account.note_unread(other)
        if field != "responses":
            completions = [self._turns(value[field], field)]
        elif isinstance(value[field], list) and value[field]:
            completions = [self._turns(item, f"responses[{i}]") for i, item in enumerate(value[field])]
        else:
            raise BadRecord("no response", "responses is no list, or an empty one")
        # Messages as soon as one of them is: a text beside them is a turn.
        if self._as_messages or not all(isinstance(turns, str) for turns in (asked.prompt, *completions)):
            prompt = spoken("user", asked.prompt)
            return Question(prompt, tuple(spoken("assistant", turns) for turns in completions), asked.tools)
        return Question(asked.prompt, tuple(completions), asked.tools)

    def _turns(self, found: Any, where: str) -> Turns:
        if isinstance(found, str | dict):
            found = as_message_list(found, where) or found
        if not isinstance(found, list):
            return checked_text(found, where)
        return message_list({where: found}, where, self._roles, self.account)


def _beside(value: dict[str, Any]) -> dict[str, Any]:
    """The fields that go along."""
    found = {}
    for name, each in value.items():
        if name not in _TEXTS and isinstance(each, str | int | float):
            checked_text(name, "the name of a field")
            found[name] = checked_text(each, name) if isinstance(each, str) else each
    return found
