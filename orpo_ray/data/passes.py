"""One pass over a source: its records read, rendered and tokenised into an entry of the cache, each accounted for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from orpo_ray.config import DataConfig
from orpo_ray.config.data import Reading, SourceConfig
from orpo_ray.data import lengths
from orpo_ray.data.cache import CacheWriter, Kept, prompt_hash
from orpo_ray.data.comparisons import dense_ranks
from orpo_ray.data.formats import NoPreference, RecordReader, require_short
from orpo_ray.data.hashes import Hashes
from orpo_ray.data.prompts import Question, QuestionReader
from orpo_ray.data.questions import as_line
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.round_trip import CHARACTERS_COMPARED, ROUND_TRIPS, lost_in_tokens
from orpo_ray.data.selection import select, without_repeats
from orpo_ray.data.sources import Source
from orpo_ray.data.split import question_hash
from orpo_ray.data.templates import Rendered, Renderer
from orpo_ray.data.tokenization import PairTokenizer, Tokenized
from orpo_ray.data.written import require_written
from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORDS_PER_BATCH = 256
CHARACTERS_AT_ONCE = 1 << 20
"""Tokenising takes memory by the character; 256 records that are as long as they may be would take too much."""


class _Waiting(NamedTuple):
    """A record to be tokenised."""

    record: int
    """Its index in the source."""
    ranks: tuple[int, ...]
    """Of its responses."""
    question: int
    """See `question_hash`."""
    text: Rendered
    location: str
    """What messages call the record."""
    line: bytes | None = None
    """See `Kept`."""


class SourcePass(ABC):
    """Each record is kept, dropped or quarantined, and counted."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        writer: CacheWriter,
    ) -> None:
        self.data = data
        self.renderer = renderer
        self.tokenizer = tokenizer
        self._looked_at = False
        """At the first texts (see `_look_at`)."""
        self.tokenize = PairTokenizer(tokenizer, data.max_length, data.max_prompt_length)
        self.writer = writer
        self.account = Account()
        self._waiting: list[_Waiting] = []
        """Records to tokenise together."""
        self._characters = 0
        """Of those."""
        self._kept: list[Kept] = []

    @abstractmethod
    def _render(self, record: Record) -> _Waiting | None:
        """The text of a record; None where it is dropped. Raises `BadRecord`, and `UserError` for a setting."""

    @abstractmethod
    def _fit(self, waiting: Sequence[_Waiting]) -> None:
        """Tokenise records, and keep or drop each."""

    def _template_remarks(self) -> list[str]:
        return self.renderer.remarks

    @abstractmethod
    def _unmet(self) -> list[str]:
        """See `RecordReader.remarks`."""

    def run(self, source: Source, limit: int | None, progress: Callable[[int], None] | None) -> Account:
        for record in islice(source.records(), limit):
            self.account.read += 1
            waiting = self._rendered(record)
            if waiting is not None:
                self._add(waiting)
            if self.account.read % RECORDS_PER_BATCH == 0:
                self._write(progress)
        if self.account.read % RECORDS_PER_BATCH:
            self._write(progress)
        self.account.said += self._unmet()
        return self.account

    def _add(self, waiting: _Waiting) -> None:
        size = waiting.text.characters
        if self._characters + size > CHARACTERS_AT_ONCE:
            self._tokenize()
        self._waiting.append(waiting)
        self._characters += size

    def _write(self, progress: Callable[[int], None] | None) -> None:
        """The digest of the pairs, which a run is known by, depends on how many are written at once."""
        self._tokenize()
        self.account.kept += len(self._kept)
        self.writer.write(self._kept)
        self._kept = []
        if progress is not None:
            progress(self.account.read)

    def _tokenize(self) -> None:
        waiting, self._waiting, self._characters = self._waiting, [], 0
        if not self._looked_at:
            self._look_at(waiting)
        self._fit(waiting)

    def _look_at(self, waiting: list[_Waiting]) -> None:
        """Whether the tokenizer gives the first texts back, and what is to be said of it and of the template."""
        self._looked_at = bool(waiting)
        for item in waiting[:ROUND_TRIPS]:
            responses = [response.segments for response in item.text.responses] or [[]]
            for response in responses:
                prompt, answer = ("".join(segment.text for segment in part) for part in (item.text.prompt, response))
                text = prompt[-CHARACTERS_COMPARED:] + answer[:CHARACTERS_COMPARED]
                try:
                    lost = lost_in_tokens(self.tokenizer, text)
                except UserError as error:
                    raise UserError(f"{item.location}: {error}") from None
                if lost and lost not in self.account.said:
                    self.account.said.append(lost)
        if any(not item.text.verbatim for item in waiting):
            self.account.said += self._template_remarks()
        elif waiting and self.renderer.template is not None:
            self.account.said.append(
                "records are text, taken as it stands: the tokenizer's chat template is for message lists, and for "
                "text where data.chat_template is set"
            )

    def _rendered(self, record: Record) -> _Waiting | None:
        """The text of a record that is sound and passes the paper's filters."""
        try:
            return self._render(record)
        except BadRecord as error:
            if self.data.on_bad_record == "error":
                raise UserError(
                    f"{record.location}: {error}; mend the record, or set data.on_bad_record=quarantine "
                    "to set such records aside"
                ) from None
            self.account.quarantined[error.reason] += 1
            self.writer.quarantine(record, error)
            return None
        except UserError as error:
            raise UserError(f"{record.location}: {error}") from None


class PairPass(SourcePass):
    """Of records with responses that are compared, or labelled."""

    def __init__(
        self,
        data: DataConfig,
        asked: SourceConfig,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        writer: CacheWriter,
        reading: Reading = "every_pair",
    ) -> None:
        super().__init__(data, tokenizer, renderer, writer)
        self.reading = reading
        self.uncut = self.account.uncut = lengths.none_yet()
        self.read = RecordReader(asked, asked.format or "auto", self.account, as_messages=renderer.overrides_text)

    def _unmet(self) -> list[str]:
        return self.read.remarks()

    def _fit(self, waiting: Sequence[_Waiting]) -> None:
        tokenized = self.tokenize([item.text for item in waiting])
        for item, (cut, whole) in zip(waiting, tokenized, strict=True):
            fitting = [*zip(cut.responses, cut.responses_cut, strict=True)]
            answers, left = without_repeats(fitting, item.ranks)
            ranks = tuple(left) if self.reading == "labels" else dense_ranks(left)
            limit = self.data.drop_prompts_over
            if limit is not None and len(whole.prompt) > limit:
                self.account.dropped[f"prompt over {limit} tokens"] += 1
            elif not cut.prompt:  # no BOS and no token: nothing for a response to follow
                self.account.dropped["empty prompt"] += 1
            elif len(set(ranks)) < 2 <= len(set(item.ranks)):
                self.account.dropped["chosen = rejected once tokenised and cut"] += 1
            else:
                responses, cuts = zip(*answers, strict=True)
                fitted = replace(cut, responses=responses, responses_cut=cuts)
                self._kept.append(Kept(item.record, fitted, ranks, item.question))
                self.account.straddled += whole.straddled
                self.account.cut_prompts += cut.prompt_cut
                best = ranks.count(0)
                self.account.cut_chosen += any(cuts[:best])
                self.account.cut_rejected += any(cuts[best:])
                uncut = [len(whole.responses[fitting.index(answer)]) for answer in answers]
                lengths.count(self.uncut, len(whole.prompt), uncut[:best], uncut[best:])

    def _render(self, record: Record) -> _Waiting | None:
        if record.value is None:
            raise record.error or BadRecord("unreadable")
        # An empty answer is sound text that teaches nothing: the paper drops it. One that is not text at all
        # is a bad record.
        try:
            comparison = self.read.comparison(record.value)
            prompt, tools = comparison.prompt, comparison.tools
            answers = [answer.turns for answer in comparison.answers]
            require_short(self.data.max_record_characters, prompt, *answers, tools)
            answers, ranks = select(comparison, self.reading, self.account)
        except NoPreference as none:
            self.account.dropped[none.reason] += 1
            return None
        require_written(self.renderer, prompt, answers, tools, self.account)
        return _Waiting(
            record.index,
            ranks,
            question_hash(prompt),
            self.renderer.rendered(prompt, answers, tools=tools),
            record.location,
        )


class PromptPass(SourcePass):
    """Of records as prompts alone, each different one once, none cut."""

    def __init__(
        self,
        data: DataConfig,
        asked: SourceConfig,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        writer: CacheWriter,
        longest: int,
    ) -> None:
        """`longest`: tokens of a prompt behind which there is room for a response."""
        super().__init__(data, tokenizer, renderer, writer)
        self.longest = longest
        self._met = Hashes()

        def reader(account: Account, as_messages: bool) -> QuestionReader:
            return QuestionReader(asked, asked.format or "auto", account, as_messages=as_messages, alone=True)

        self._asked = reader(self.account, renderer.overrides_text)
        """Reads what the policy is asked."""
        self._otherwise = reader(Account(), not renderer.overrides_text)
        """Reads the same records once more, for who is asked in the other form."""

    def _unmet(self) -> list[str]:
        return self._asked.remarks()

    def _template_remarks(self) -> list[str]:
        return self.renderer.prompt_remarks

    def _fit(self, waiting: Sequence[_Waiting]) -> None:
        encoded = self.tokenize.encode([item.text for item in waiting])
        for item, (prompt, _, _) in zip(waiting, encoded, strict=True):
            limit = self.data.drop_prompts_over
            if limit is not None and len(prompt) > limit:
                self.account.dropped[f"prompt over {limit} tokens"] += 1
            elif len(prompt) > self.longest:
                self.account.dropped["prompt leaves no room for rollouts.max_tokens"] += 1
            elif not prompt:
                self.account.dropped["empty prompt"] += 1
            elif not self._met.add(prompt_hash(prompt)):
                self.account.dropped["prompt of an earlier record"] += 1
            else:
                tokenized = Tokenized(prompt, (), False, ())
                self._kept.append(Kept(item.record, tokenized, (), item.question, item.line))

    def _render(self, record: Record) -> _Waiting:
        if record.value is None:
            raise record.error or BadRecord("unreadable")
        question = self._asked(record.value)
        prompt, tools = question.prompt, question.tools
        require_short(self.data.max_record_characters, prompt, tools)
        require_written(self.renderer, prompt, (), tools, self.account)
        return _Waiting(
            record.index,
            (),
            question_hash(prompt),
            self.renderer.rendered(prompt, (), tools=tools),
            record.location,
            as_line(*self._forms(question, record)),
        )

    def _forms(self, question: Question, record: Record) -> tuple[Question, Question]:
        """A question as the source holds it, and as messages."""
        assert record.value is not None
        if isinstance(question.prompt, str):
            return question, self._otherwise(record.value)
        if not self.renderer.overrides_text:
            return question, question
        try:
            return self._otherwise(record.value), question
        except BadRecord:  # a system turn where the first record has none, which only messages can hold
            return question, question
