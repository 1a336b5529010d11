"""From the configuration to tokenised training and evaluation pairs, every record accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orpo_ray.config import DataConfig, TrainConfig
from orpo_ray.config.schema import Reading
from orpo_ray.data.cache import CacheWriter, TokenizedSource, cache_key, read_or_build
from orpo_ray.data.comparisons import dense_ranks
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.formats import Format, parse, recognise, require_short
from orpo_ray.data.groups import Comparison, GroupFormat, of_pair, parse_group, recognise_group
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.selection import NoPreference, select, without_repeats
from orpo_ray.data.sources import Source, open_source
from orpo_ray.data.split import split_by_prompt
from orpo_ray.data.templates import Renderer, Segment
from orpo_ray.data.tokenization import PairTokenizer, Tokenized, tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.masking import masked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_VERSION = 2
"""Raised by one whenever the same records would come out as other tokens: older caches are then not found."""
RECORDS_PER_BATCH = 256
CHARACTERS_AT_ONCE = 1 << 20
"""Tokenising takes memory by the character; 256 records that are as long as they may be would take too much."""


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
    remarks: tuple[str, ...] = ()
    """What of the records is not read, and what was decided about them, each in a line."""


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
    train_pairs, held_pairs = (
        _read_as(config, part, name) for part, name in zip(pairs, (data.train, data.eval or data.train), strict=True)
    )
    return PreparedData(
        train_pairs,
        held_pairs,
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
    )


def _read_as(config: TrainConfig, pairs: PairDataset, name: str) -> PairDataset:
    """`pairs`, as the objective takes them."""
    # SFT trains on the best response, and evaluates one other beside it.
    pairs = replace(pairs, rule="best_against_worst" if config.objective.name == "sft" else config.reading)
    if config.reading != "labels":
        return pairs
    mismatched = Mismatched(pairs, config.seed, config.data.max_length)
    mismatched.check(name)
    return replace(pairs, mismatched=mismatched)


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
    renderer = Renderer(tokenizer, data.chat_template)
    key = cache_key(
        {
            "version": CODE_VERSION,
            "source": fingerprint,
            "limit": limit,
            "tokenizer": tokenizer_digest(tokenizer),
            "template": [renderer.template, renderer.overrides_text],
            "format": data.format,
            "answers": {"best_against_worst": "two", "labels": "labelled"}.get(config.reading, "all"),
            "lengths": [data.max_length, data.max_prompt_length, data.drop_prompts_over],
            "max_record_characters": data.max_record_characters,
            "on_bad_record": data.on_bad_record,
        }
    )

    def build(writer: CacheWriter) -> Account:
        return _Tokenization(data, tokenizer, renderer, writer, config.reading).run(source, limit, progress)

    tokenized = read_or_build(config.cache_dir / "tokens", key, build)
    if tokenized.account.read == 0:
        raise UserError(f"{name}: holds no records")
    if tokenized.account.kept == 0:
        where = f"; see {tokenized.quarantine}" if tokenized.quarantine else ""
        raise UserError(f"{name}: no pair is left: {tokenized.account.describe()}{where}")
    return tokenized


class _Waiting(NamedTuple):
    """A record to be tokenised."""

    record: int
    """Its index in the source."""
    ranks: tuple[int, ...]
    texts: list[list[Segment]]
    """Prompt, then the responses."""


class _Tokenization:
    """One pass over a source: each record is kept, dropped or quarantined, and counted."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        writer: CacheWriter,
        reading: Reading = "every_pair",
    ) -> None:
        self.data = data
        self.reading = reading
        self.renderer = renderer
        self.tokenize = PairTokenizer(tokenizer, data.max_length, data.max_prompt_length)
        self.writer = writer
        self.format: Format | GroupFormat | None = None if data.format == "auto" else data.format
        self.account = Account()
        self._waiting: list[_Waiting] = []
        """Records to tokenise together."""
        self._characters = 0
        """Of those."""
        self._kept: list[tuple[int, Tokenized, tuple[int, ...]]] = []

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
        return self.account

    def _add(self, waiting: _Waiting) -> None:
        size = sum(len(segment.text) for text in waiting.texts for segment in text)
        if self._characters + size > CHARACTERS_AT_ONCE:
            self._tokenize()
        self._waiting.append(waiting)
        self._characters += size

    def _write(self, progress: Callable[[int], None] | None) -> None:
        """The digest of the records, which a run is known by, depends on how many are written at once."""
        self._tokenize()
        self.account.kept += len(self._kept)
        self.writer.write(self._kept)
        self._kept = []
        if progress is not None:
            progress(self.account.read)

    def _tokenize(self) -> None:
        waiting, self._waiting, self._characters = self._waiting, [], 0
        tokenized = self.tokenize([item.texts for item in waiting])
        for item, (whole, prompt_length) in zip(waiting, tokenized, strict=True):
            answers, left = without_repeats([*zip(whole.responses, whole.responses_cut, strict=True)], item.ranks)
            ranks = tuple(left) if self.reading == "labels" else dense_ranks(left)
            limit = self.data.drop_prompts_over
            if limit is not None and prompt_length > limit:
                self.account.dropped[f"prompt over {limit} tokens"] += 1
            elif not whole.prompt:  # no BOS and no token: nothing for a response to follow
                self.account.dropped["empty prompt"] += 1
            elif len(set(ranks)) < 2 <= len(set(item.ranks)):
                self.account.dropped["chosen = rejected once tokenised and cut"] += 1
            else:
                responses, cut = zip(*answers, strict=True)
                self._kept.append((item.record, replace(whole, responses=responses, responses_cut=cut), ranks))
                self.account.cut_prompts += whole.prompt_cut
                best = ranks.count(0)
                self.account.cut_chosen += any(cut[:best])
                self.account.cut_rejected += any(cut[best:])

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

    def _render(self, record: Record) -> _Waiting | None:
        if record.value is None:
            raise record.error or BadRecord("unreadable")
        comparison = self._read(record.value)
        require_short(
            self.data.max_record_characters, comparison.prompt, *(answer.turns for answer in comparison.answers)
        )
        # An empty answer is sound text that teaches nothing: the paper drops it. One that is not text at all
        # is a bad record.
        try:
            answers, ranks = select(comparison, self.reading, self.account)
        except NoPreference as none:
            self.account.dropped[none.reason] += 1
            return None
        return _Waiting(record.index, ranks, self.renderer.rendered(comparison.prompt, answers))

    def _read(self, value: dict[str, Any]) -> Comparison:
        if self.format is None:
            self.format = recognise_group(value) or recognise(value)
        as_messages = self.renderer.overrides_text
        match self.format:
            case "ranked" | "several" | "labelled":
                return parse_group(value, self.format, as_messages)
            case _:
                return of_pair(parse(value, self.format, as_messages))
