"""Prompts to answer: from preference pairs, whose own responses come along, or from records that only ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.formats import (
    Format,
    Message,
    checked_text,
    message_list,
    parse,
    recognise,
    require_short,
    text_field,
)
from orpo_ray.data.groups import recognise_group
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.sources import open_source
from orpo_ray.data.templates import Turns
from orpo_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the data set's own completions of it: `(chosen, rejected)`, or none."""

    prompt: Turns
    completions: tuple[Turns, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, as the source holds it and as messages, for models that are asked in messages."""

    location: str
    as_found: Question
    as_messages: Question | None
    """None where no model wants messages (see `read_prompts`)."""

    def form(self, messages: bool) -> Question:
        found = self.as_messages if messages else self.as_found
        assert found is not None
        return found


def read_prompts(
    config: PromptsConfig, *, with_messages: bool, progress: Callable[[int], None] | None = None
) -> tuple[list[Prompt], Account]:
    """The prompts of `config.source`, in its order, and the account of the records they came from.

    `with_messages`: read text as messages, too. Raises `UserError`: a source that cannot be read, a bad record
    unless `config.on_bad_record` is `quarantine`, or no prompt at all.
    """
    prompts: list[Prompt] = []
    account = Account()
    format: Format | None = None
    if config.format != "auto" and config.format != "prompts":
        format = config.format
    source = open_source(config.source, config.split, config.max_record_characters)
    for record in islice(source.records(), config.limit):
        account.read += 1
        try:
            if record.value is None:
                raise record.error or BadRecord("unreadable")
            pairs = "chosen" in record.value and recognise_group(record.value) is None  # of others the prompt is asked
            if config.format == "auto" and not prompts and pairs:
                format = recognise(record.value)
            prompt = _prompt(record, record.value, format, with_messages)
            require_short(config.max_record_characters, prompt.as_found.prompt, *prompt.as_found.completions)
            prompts.append(prompt)
        except BadRecord as error:
            if config.on_bad_record == "error":
                raise UserError(
                    f"{record.location}: {error}; mend the record, or set prompts.on_bad_record=quarantine "
                    "to leave such records out"
                ) from None
            account.quarantined[error.reason] += 1
        else:
            account.kept += 1
        if progress is not None:
            progress(account.read)
    if not prompts:
        raise UserError(f"{config.source}: no prompt to answer: {account.describe()}")
    return prompts, account


def readable(turns: Turns) -> str:
    """A prompt or a completion as a person reads it."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in turns)


def _prompt(record: Record, value: dict[str, Any], format: Format | None, with_messages: bool) -> Prompt:
    as_found = _question(value, format, as_messages=False)
    as_messages = as_found
    if with_messages and isinstance(as_found.prompt, str):
        as_messages = _question(value, format, as_messages=True)
    return Prompt(record.location, as_found, as_messages if with_messages else None)


def _question(value: dict[str, Any], format: Format | None, *, as_messages: bool) -> Question:
    if format is not None:
        pair = parse(value, format, as_messages)
        question = Question(pair.prompt, (pair.chosen, pair.rejected))
    else:
        question = Question(_only_prompt(value, as_messages), ())
    if not readable(question.prompt).strip():
        raise BadRecord("empty prompt")
    return question


def _only_prompt(value: dict[str, Any], as_messages: bool) -> Turns:
    if isinstance(value.get("prompt"), list):
        return message_list(value, "prompt")
    if "prompt" in value:
        text = text_field(value, "prompt")
        return [Message(role="user", content=text)] if as_messages else text
    if "instruction" in value:  # AlpacaEval
        return [Message(role="user", content=text_field(value, "instruction"))]
    if isinstance(value.get("turns"), list) and value["turns"] and isinstance(value["turns"][0], str):  # MT-Bench
        return [Message(role="user", content=checked_text(value["turns"][0], "turns[0]"))]
    raise BadRecord("no prompt", "none of the fields prompt, instruction, turns")
