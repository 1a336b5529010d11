"""Prompts to answer: from preference pairs, whose own responses come along, or from records that only ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.config.records import RecordsConfig
from orpo_ray.data.formats import NoPreference, RecordReader, Tools, Turns, require_short
from orpo_ray.data.formats.messages import checked_text, readable, spoken, turn
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.sources import Source, open_source
from orpo_ray.errors import UserError

Read = TypeVar("Read")
KEPT = ("question_id", "key", "instruction_id_list", "kwargs")
"""Columns by which benchmarks know a prompt, and what they ask of its answers, which go along with it."""
__all__ = ["Prompt", "Question", "QuestionReader", "read_each", "read_prompts", "readable"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the data set's own completions of it: `(chosen, rejected)`, or none."""

    prompt: Turns
    completions: tuple[Turns, ...]
    tools: Tools | None = None
    """Functions that the model may call; with messages alone."""
    further: tuple[str, ...] = ()
    """What is asked after the answer to the prompt, one by one."""

    @property
    def content(self) -> list[Any]:
        """All that is asked, for a digest."""
        more = {"tools": self.tools, "further": self.further}
        return [self.prompt, self.completions, *(value for value in more.values() if value)]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, as the source holds it and as messages, for models that are asked in messages."""

    location: str
    as_found: Question
    as_messages: Question | None
    """None where no model wants messages (see `read_prompts`)."""
    category: str = ""
    """By the column `prompts.category`; empty: none is asked for."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of `KEPT` what its record has."""

    @property
    def alone(self) -> Prompt:
        """Without the data set's own completions, and what else its record says."""
        spoken = self.as_messages and replace(self.as_messages, completions=())
        return replace(self, as_found=replace(self.as_found, completions=()), as_messages=spoken, fields={})

    def after(self, answers: Sequence[str]) -> Prompt:
        """What is asked next, with the answers to all that was asked before, as messages."""
        asked = self.as_found
        messages = spoken("user", asked.prompt)
        for answer, question in zip(answers, asked.further, strict=False):
            messages = [*messages, *turn("assistant", answer), *turn("user", question)]
        conversation = Question(messages, (), asked.tools)
        return replace(self, as_found=conversation, as_messages=conversation)

    @property
    def question_id(self) -> str | None:
        """What MT-Bench knows it by, where its record says so."""
        known_by = self.fields.get("question_id")
        return str(known_by) if isinstance(known_by, int | str) else None

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
    account = Account()
    as_found = QuestionReader(config, config.format, account, as_messages=False, turns=config.turns)
    # Counts the same records again.
    as_messages = QuestionReader(config, config.format, Account(), as_messages=True, turns=config.turns)

    def read(record: Record, value: dict[str, Any]) -> Prompt:
        found = as_found(value)
        require_short(config.max_record_characters, found.prompt, found.tools, *found.completions, *found.further)
        spoken = as_messages(value) if with_messages and isinstance(found.prompt, str) else found
        fields = {name: value[name] for name in KEPT if value.get(name) is not None}
        return Prompt(record.location, found, spoken if with_messages else None, _category(config, value), fields)

    prompts = read_each(config, account, read, "prompt to answer", progress)
    account.unread.pop(config.category or "", None)
    account.said += as_found.remarks()
    return prompts, account


def _category(config: PromptsConfig, value: dict[str, Any]) -> str:
    """Raises `BadRecord` where the record has none, and one is asked for."""
    if config.category is None:
        return ""
    category = value.get(config.category)
    if not isinstance(category, str | int) or category == "":
        raise BadRecord("no category", f"{config.category} (prompts.category) is no text and no whole number")
    return checked_text(str(category), config.category)


def read_each(
    config: PromptsConfig,
    account: Account,
    read: Callable[[Record, dict[str, Any]], Read],
    wanted: str,
    progress: Callable[[int], None] | None = None,
) -> list[Read]:
    """What `read` makes of every record of `config.source` (it raises `BadRecord` and `NoPreference`), all accounted.

    Raises `UserError` as `read_prompts` does; `wanted` says in its line what there is none of.
    """
    all_found: list[Read] = []
    source = open_source(config.source, config.split, config.max_record_characters)
    account.said += source.remarks()
    for record in _asked(config, source):
        account.read += 1
        try:
            if record.value is None:
                raise record.error or BadRecord("unreadable")
            all_found.append(read(record, record.value))
        except NoPreference as none:
            account.dropped[none.reason] += 1
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
    if not all_found:
        raise UserError(f"{config.source}: no {wanted}: {account.describe()}")
    return all_found


def _asked(config: PromptsConfig, source: Source) -> Iterator[Record]:
    """The first `config.limit` records, or `config.records` alone."""
    if config.records is None:
        yield from islice(source.records(), config.limit)
        return
    left = set(config.records)
    for record in islice(source.records(), max(left, default=-1) + 1):
        if record.index in left:
            left.remove(record.index)
            yield record
    if left:
        raise UserError(f"prompts.records: {config.source} has no record {min(left)}")


class QuestionReader:
    """Reads records as questions, all in one form.

    `alone`: completions are left out, which is noted in `account`; and what a record says of them, such as a tie, is
    nothing to its prompt. `turns`: that each record has to have at the least.
    """

    def __init__(
        self,
        settings: RecordsConfig,
        format: str,
        account: Account,
        *,
        as_messages: bool,
        alone: bool = False,
        turns: int = 1,
    ) -> None:
        self._account = account
        self._alone = alone
        self._turns = turns
        self._read = RecordReader(
            settings, format, account, as_messages=as_messages, may_only_ask=True, prompts_alone=alone, turns=turns
        )

    def remarks(self) -> list[str]:
        """As `RecordReader.remarks`."""
        return self._read.remarks()

    def __call__(self, value: dict[str, Any]) -> Question:
        """Raises `BadRecord`, and `NoPreference` where of its completions none is the better one."""
        comparison = self._read.comparison(value)
        if not readable(comparison.prompt).strip():
            raise BadRecord("empty prompt")
        if len(comparison.further) + 1 < self._turns:
            raise BadRecord("too few turns", f"{len(comparison.further) + 1}, where prompts.turns asks {self._turns}")
        if not all(question.strip() for question in comparison.further):
            raise BadRecord("empty prompt", "one of its further turns")
        if comparison.answers and self._alone:
            self._account.noted["have answers of their own, which are left out"] += 1
        if self._alone or not comparison.answers:
            return Question(comparison.prompt, (), comparison.tools, comparison.further)
        if comparison.labelled:
            self._account.noted["have one answer with a label, so their prompts alone are asked"] += 1
            return Question(comparison.prompt, (), comparison.tools)
        if len(comparison.answers) > 2:
            self._account.noted["have more than two answers, of which the best and the worst are read"] += 1
        pair = comparison.pair()
        return Question(pair.prompt, (pair.chosen, pair.rejected), pair.tools)
