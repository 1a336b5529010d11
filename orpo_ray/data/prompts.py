"""Prompts to answer: from preference pairs, whose own responses come along, or from records that only ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.config.records import RecordsConfig
from orpo_ray.data.formats import NoPreference, RecordReader, Tools, Turns, require_short
from orpo_ray.data.formats.messages import readable
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.sources import Source, open_source
from orpo_ray.errors import UserError

Read = TypeVar("Read")
__all__ = ["Prompt", "Question", "QuestionReader", "read_each", "read_prompts", "readable"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the data set's own completions of it: `(chosen, rejected)`, or none."""

    prompt: Turns
    completions: tuple[Turns, ...]
    tools: Tools | None = None
    """Functions that the model may call; with messages alone."""

    @property
    def content(self) -> list[Any]:
        """All that is asked, for a digest."""
        return [self.prompt, self.completions, *([self.tools] if self.tools else [])]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, as the source holds it and as messages, for models that are asked in messages."""

    location: str
    as_found: Question
    as_messages: Question | None
    """None where no model wants messages (see `read_prompts`)."""

    @property
    def alone(self) -> Prompt:
        """Without the data set's own completions."""
        spoken = self.as_messages and replace(self.as_messages, completions=())
        return replace(self, as_found=replace(self.as_found, completions=()), as_messages=spoken)

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
    as_found = QuestionReader(config, config.format, account, as_messages=False)
    # Counts the same records again.
    as_messages = QuestionReader(config, config.format, Account(), as_messages=True)

    def read(record: Record, value: dict[str, Any]) -> Prompt:
        found = as_found(value)
        require_short(config.max_record_characters, found.prompt, found.tools, *found.completions)
        spoken = as_messages(value) if with_messages and isinstance(found.prompt, str) else found
        return Prompt(record.location, found, spoken if with_messages else None)

    prompts = read_each(config, account, read, "prompt to answer", progress)
    account.said += as_found.remarks()
    return prompts, account


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
    nothing to its prompt.
    """

    def __init__(
        self, settings: RecordsConfig, format: str, account: Account, *, as_messages: bool, alone: bool = False
    ) -> None:
        self._account = account
        self._alone = alone
        self._read = RecordReader(
            settings, format, account, as_messages=as_messages, may_only_ask=True, prompts_alone=alone
        )

    def remarks(self) -> list[str]:
        """As `RecordReader.remarks`."""
        return self._read.remarks()

    def __call__(self, value: dict[str, Any]) -> Question:
        """Raises `BadRecord`, and `NoPreference` where of its completions none is the better one."""
        comparison = self._read.comparison(value)
        if not readable(comparison.prompt).strip():
            raise BadRecord("empty prompt")
        if comparison.answers and self._alone:
            self._account.noted["have answers of their own, which are left out"] += 1
        if self._alone or not comparison.answers:
            return Question(comparison.prompt, (), comparison.tools)
        if comparison.labelled:
            self._account.noted["have one answer with a label, so their prompts alone are asked"] += 1
            return Question(comparison.prompt, (), comparison.tools)
        if len(comparison.answers) > 2:
            self._account.noted["have more than two answers, of which the best and the worst are read"] += 1
        pair = comparison.pair()
        return Question(pair.prompt, (pair.chosen, pair.rejected), pair.tools)
