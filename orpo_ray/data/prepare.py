"""From the configuration to tokenised training and evaluation pairs, every record accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orpo_ray.config import DataConfig, TrainConfig
from orpo_ray.data.cache import CacheWriter, TokenizedSource, cache_key, read_or_build
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.formats import Format, Message, parse, recognise, require_short
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.round_trip import CHARACTERS_COMPARED, ROUND_TRIPS, lost_in_tokens
from orpo_ray.data.sources import Source, open_source
from orpo_ray.data.split import split_by_prompt
from orpo_ray.data.templates import Rendered, Renderer
from orpo_ray.data.tokenization import PairTokenizer, TokenizedPair, tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.masking import masked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_VERSION = 3
"""Raised by one whenever the same records would come out as other tokens: older caches are then not found."""
RECORDS_PER_BATCH = 256
CHARACTERS_AT_ONCE = 1 << 20
"""Tokenising takes memory by the character; 256 records that are as long as they may be would take too much."""


class Highest(NamedTuple):
    """The highest token id of a source."""

    source: str
    id: int
    record: int


@dataclass(frozen=True)
class PreparedData:
    """Tokenised pairs, memory-mapped, and the account of the records they came from."""

    train: PairDataset
    eval: PairDataset
    account: Account
    """Of `data.train`, before pairs are held out of it."""
    eval_account: Account | None
    """Of `data.eval`, where it is set."""
    quarantine: tuple[Path, ...]
    """Files of quarantined records, where there are any."""
    digest: str
    """Of all pairs, those of training and those held out."""
    fingerprints: tuple[str, ...]
    """Of the content of `data.train` and, where it is set, of `data.eval`."""
    highest: tuple[Highest, ...] = ()
    """The highest token id of each source, and its record."""
    remarks: tuple[str, ...] = ()
    """What template and tokenizer do to the data that a person may not expect, each in a line."""


def prepare(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None = None,
    fingerprints: Sequence[str] = (),
) -> PreparedData:
    """Read, check, tokenise (or find in the cache) and split the data of a run.

    `fingerprints`: those that another process found a moment ago; the sources are then not read to know their content.
    `progress` is called with the number of records of the present source read so far; not at all where the
    cache has them. Raises `UserError`: a source that cannot be read; a bad record, unless
    `data.on_bad_record` is `quarantine`; a template that does not fit; nothing left to train on or evaluate.
    """
    data = config.data
    names = [(data.train, data.train_split, data.limit)]
    if data.eval is not None:
        names.append((data.eval, data.eval_split, None))
    sources = [open_source(name, split, data.max_record_characters) for name, split, _ in names]
    fingerprints = tuple(fingerprints) or tuple(source.fingerprint() for source in sources)
    train, *others = [
        _tokenized(config, name, source, fingerprint, limit, tokenizer, progress)
        for (name, _, limit), source, fingerprint in zip(names, sources, fingerprints, strict=True)
    ]
    if others:
        [held] = others
        pairs, eval_account = (train.pairs, held.pairs), held.account
    else:
        held_in, held_out = split_by_prompt(
            train.prompt_hashes, data.eval_fraction, config.seed, data.train, train.folder
        )
        pairs, eval_account = (train.pairs.subset(held_in), train.pairs.subset(held_out)), None
    return PreparedData(
        *pairs,
        train.account,
        eval_account,
        quarantine=tuple(source.quarantine for source in [train, *others] if source.quarantine is not None),
        digest="-".join(source.digest for source in [train, *others]),
        fingerprints=fingerprints,
        remarks=tuple(
            f"{masked(name)}: {remark}"
            for (name, _, _), source in zip(names, [train, *others], strict=True)
            for remark in source.account.remarks()
        ),
        highest=tuple(
            Highest(name, *source.highest) for (name, _, _), source in zip(names, [train, *others], strict=True)
        ),
    )


def _tokenized(
    config: TrainConfig,
    name: str,
    source: Source,
    fingerprint: str,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None,
) -> TokenizedSource:
    """One source, from the cache or tokenised into it."""
    data = config.data
    renderer = Renderer(tokenizer, data.chat_template, date=data.date)
    key = cache_key(
        {
            "version": CODE_VERSION,
            "source": fingerprint,
            "limit": limit,
            "tokenizer": tokenizer_digest(tokenizer),
            "template": [renderer.template, renderer.overrides_text],
            "format": data.format,
            "lengths": [data.max_length, data.max_prompt_length, data.drop_prompts_over],
            "max_record_characters": data.max_record_characters,
            "on_bad_record": data.on_bad_record,
        }
    )

    def build(writer: CacheWriter) -> Account:
        return _Tokenization(data, tokenizer, renderer, writer).run(source, limit, progress)

    tokenized = read_or_build(config.cache_dir / "tokens", key, build)
    if tokenized.account.read == 0:
        raise UserError(f"{name}: holds no records")
    if tokenized.account.kept == 0:
        where = f"; see {tokenized.quarantine}" if tokenized.quarantine else ""
        raise UserError(f"{name}: no pair is left: {tokenized.account.describe()}{where}")
    return tokenized


class _Tokenization:
    """One pass over a source: each record is kept, dropped or quarantined, and counted."""

    def __init__(
        self, data: DataConfig, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, writer: CacheWriter
    ) -> None:
        self.data = data
        self.renderer = renderer
        self.tokenizer = tokenizer
        self._looked_at = False
        """At the first texts (see `_look_at`)."""
        self.tokenize = PairTokenizer(tokenizer, data.max_length, data.max_prompt_length)
        self.writer = writer
        self.format: Format | None = None if data.format == "auto" else data.format
        self.account = Account()
        self._waiting: list[tuple[int, Rendered]] = []
        """Pairs to tokenise together, with their records' indices."""
        self._characters = 0
        """Of those."""
        self._kept: list[tuple[int, TokenizedPair]] = []

    def run(self, source: Source, limit: int | None, progress: Callable[[int], None] | None) -> Account:
        for record in islice(source.records(), limit):
            self.account.read += 1
            rendered = self._rendered(record)
            if rendered is not None:
                self._add(record.index, rendered)
            if self.account.read % RECORDS_PER_BATCH == 0:
                self._write(progress)
        if self.account.read % RECORDS_PER_BATCH:
            self._write(progress)
        return self.account

    def _add(self, index: int, pair: Rendered) -> None:
        if self._characters + pair.characters > CHARACTERS_AT_ONCE:
            self._tokenize()
        self._waiting.append((index, pair))
        self._characters += pair.characters

    def _write(self, progress: Callable[[int], None] | None) -> None:
        """The digest of the pairs, which a run is known by, depends on how many are written at once."""
        self._tokenize()
        self.account.kept += len(self._kept)
        self.writer.write(self._kept)
        self._kept = []
        if progress is not None:
            progress(self.account.read)

    def _tokenize(self) -> None:
        rendered, self._waiting, self._characters = self._waiting, [], 0
        if not self._looked_at:
            self._look_at(rendered)
        tokenized = self.tokenize([pair for _, pair in rendered])
        for (index, _), (pair, whole) in zip(rendered, tokenized, strict=True):
            limit = self.data.drop_prompts_over
            if limit is not None and len(whole.prompt) > limit:
                self.account.dropped[f"prompt over {limit} tokens"] += 1
            elif not pair.prompt:  # no BOS and no token: nothing for a response to follow
                self.account.dropped["empty prompt"] += 1
            elif pair.chosen == pair.rejected:
                self.account.dropped["chosen = rejected once tokenised and cut"] += 1
            else:
                self._kept.append((index, pair))
                self.account.straddled += whole.straddled
                self.account.cut_prompts += pair.cut[0]
                self.account.cut_chosen += pair.cut[1]
                self.account.cut_rejected += pair.cut[2]

    def _look_at(self, pairs: list[tuple[int, Rendered]]) -> None:
        """Whether the tokenizer gives the first texts back, and what is to be said of it and of the template."""
        self._looked_at = bool(pairs)
        for index, pair in pairs[:ROUND_TRIPS]:
            for response in pair.responses:
                prompt, answer = (
                    "".join(segment.text for segment in part) for part in (pair.prompt, response.segments)
                )
                text = prompt[-CHARACTERS_COMPARED:] + answer[:CHARACTERS_COMPARED]
                try:
                    lost = lost_in_tokens(self.tokenizer, text)
                except UserError as error:
                    raise UserError(f"record {index}: {error}") from None
                if lost and lost not in self.account.said:
                    self.account.said.append(lost)
        if any(not pair.verbatim for _, pair in pairs):
            self.account.said += self.renderer.remarks

    def _rendered(self, record: Record) -> Rendered | None:
        """The text of a pair that is sound and passes the paper's filters."""
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

    def _render(self, record: Record) -> Rendered | None:
        if record.value is None:
            raise record.error or BadRecord("unreadable")
        if self.format is None:
            self.format = recognise(record.value)
        pair = parse(record.value, self.format, as_messages=self.renderer.overrides_text)
        require_short(self.data.max_record_characters, pair.prompt, pair.chosen, pair.rejected)
        # An empty answer is sound text that teaches nothing: the paper drops it. One that is not text at all
        # is a bad record.
        if _is_empty(pair.chosen) or _is_empty(pair.rejected):
            self.account.dropped["empty response"] += 1
        elif pair.chosen == pair.rejected:
            self.account.dropped["chosen = rejected"] += 1
        else:
            return self.renderer.pair(pair)
        return None


def _is_empty(completion: str | list[Message]) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return not any(message["content"].strip() for message in completion)
