"""From the configuration to tokenised pairs, or prompts, to train on and to evaluate, every record accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config import DataConfig, TrainConfig
from orpo_ray.config.data import SourceConfig
from orpo_ray.config.records import RecordsConfig
from orpo_ray.data.cache import CacheWriter, TokenizedSource, cache_key, read_or_build
from orpo_ray.data.dataset import PairDataset, Pairs
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.passes import PairPass, PromptPass, SourcePass
from orpo_ray.data.questions import JoinedPrompts, PromptDataset
from orpo_ray.data.records import Account
from orpo_ray.data.sources import Source, open_source
from orpo_ray.data.split import set_apart, split_by_prompt
from orpo_ray.data.templates import Renderer
from orpo_ray.data.tokenization import tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.masking import masked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_VERSION = 4
"""Raised by one whenever the same records would come out as other tokens: older caches are then not found."""
_ANSWERS = {"best_against_worst": "two", "labels": "labelled", "prompts": "none"}
"""What the cache calls a reading; any other is `all`."""


class Highest(NamedTuple):
    """The highest token id of a source."""

    source: str
    id: int
    record: int


@dataclass(frozen=True)
class PreparedData:
    """Tokenised pairs, memory-mapped, and the account of the records they came from. Of a run that reads prompts alone
    both parts are `dataset.Prompts` (see `questions.prompts_of`)."""

    train: Pairs
    eval: Pairs
    accounts: dict[str, Account]
    """By what was read (`data.train: toy`), before pairs are held out of it."""
    quarantine: tuple[Path, ...]
    """Files of quarantined records, where there are any."""
    digest: str
    """Of all pairs, those of training and those held out."""
    fingerprints: tuple[str, ...]
    """Of the content of the sources of `data.train` and of `data.eval`."""
    unseen: Pairs | None = None
    """Of the held-out pairs those that choose nothing (`data.unseen_fraction`); `eval` are the others."""
    highest: tuple[Highest, ...] = ()
    """The highest token id of each source, and its record."""
    remarks: tuple[str, ...] = ()
    """What of the records is not read, what was decided about them, and what template and tokenizer do to them that a
    person may not expect, each in a line."""


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
    asked = [*data.train_sources, *data.eval_sources]
    opened = [open_source(one.source, str(one.split), data.max_record_characters) for one in asked]
    fingerprints = tuple(fingerprints) or tuple(source.fingerprint() for source in opened)
    sources = [
        _tokenized(config, one, source, fingerprint, tokenizer, progress)
        for one, source, fingerprint in zip(asked, opened, fingerprints, strict=True)
    ]
    train, evaluated = sources[: len(data.train_sources)], sources[len(data.train_sources) :]
    to_train = [source.pairs for source in train]
    held_out = [source.pairs for source in evaluated]
    hashes = [_hashes(source, alone=isinstance(data.eval, str)) for source in evaluated]
    if not evaluated:
        to_train, held_out, hashes = _held_out(config, train)
    held_out, unseen = _set_apart(held_out, hashes, data.unseen_fraction)
    held_out_of = data.train if data.eval is None else data.eval

    def read(pairs_of: list[PairDataset], sources_of: list[SourceConfig], held_out: bool = False) -> list[PairDataset]:
        return [_read_as(config, pairs, one.source, held_out) for one, pairs in zip(sources_of, pairs_of, strict=True)]

    def read_held_out(pairs_of: list[PairDataset]) -> Pairs:
        pairs = read(pairs_of, data.eval_sources or data.train_sources, not evaluated)
        return _together(held_out_of, pairs)

    return PreparedData(
        _together(data.train, read(to_train, data.train_sources)),
        read_held_out(held_out),
        unseen=None if unseen is None else read_held_out(unseen),
        accounts={key: source.account for key, source in zip(_keys(data), sources, strict=True)},
        quarantine=tuple(source.quarantine for source in sources if source.quarantine is not None),
        digest="-".join(source.digest for source in sources),
        fingerprints=fingerprints,
        remarks=_remarks(asked, sources),
        highest=tuple(Highest(one.source, *source.highest) for one, source in zip(asked, sources, strict=True)),
    )


def _read_as(config: TrainConfig, pairs: PairDataset, name: str, held_out: bool) -> PairDataset:
    """`pairs` of the source `name`, or those `held_out` of it, as the objective takes them."""
    if config.reading == "prompts":
        assert isinstance(pairs, PromptDataset)
        return replace(pairs, source=masked(name))
    # SFT trains on the best response, and evaluates one other beside it.
    pairs = replace(pairs, rule="best_against_worst" if config.objective.best_alone else config.reading)
    if config.reading != "labels" or not len(pairs):
        return pairs
    mismatched = Mismatched(pairs, config.seed, config.data.max_length)
    mismatched.check(name, held_out=held_out)
    return replace(pairs, mismatched=mismatched)


def _set_apart(
    parts: list[PairDataset], hashes: list[NDArray[np.uint64]], fraction: float | None
) -> tuple[list[PairDataset], list[PairDataset] | None]:
    """Of each part of the held-out records, with these prompt hashes, those that choose, and those that do not."""
    if fraction is None:
        return parts, None
    flags = np.split(set_apart(np.concatenate(hashes), fraction), np.cumsum([len(own) for own in hashes])[:-1])
    both = list(zip(parts, flags, strict=True))
    choosing = [part.subset(np.flatnonzero(~apart)) for part, apart in both]
    return choosing, [part.subset(np.flatnonzero(apart)) for part, apart in both]


def _hashes(source: TokenizedSource, *, alone: bool) -> NDArray[np.uint64]:
    """By which prompts are told apart. One source is written in one way; several may have the same prompt as text and
    as messages."""
    return source.prompt_hashes if alone else source.question_hashes


def _held_out(
    config: TrainConfig, sources: Sequence[TokenizedSource]
) -> tuple[list[PairDataset], list[PairDataset], list[NDArray[np.uint64]]]:
    """Of each source the pairs to train on, those to evaluate, and the prompt hashes of these."""
    data, alone = config.data, isinstance(config.data.train, str)
    train, evaluated, hashes = [], [], []
    for asked, source in zip(data.train_sources, sources, strict=True):
        own = _hashes(source, alone=alone)
        held_in, held_out = split_by_prompt(
            own, data.eval_fraction, config.seed, asked.source, source.folder, alone=alone
        )
        train.append(source.pairs.subset(held_in))
        evaluated.append(source.pairs.subset(held_out))
        hashes.append(own[held_out])
    if not any(map(len, evaluated)):
        raise UserError(
            f"data.eval_fraction={data.eval_fraction:g} holds out none of so few prompts; set data.eval to a source of "
            "its own, or raise data.eval_fraction"
        )
    return train, evaluated, hashes


def _remarks(asked: Sequence[SourceConfig], sources: Sequence[TokenizedSource]) -> tuple[str, ...]:
    """Those of all sources, each behind the sources that it is about: what a template does is the same in all."""
    about: dict[str, dict[str, None]] = {}
    for one, source in zip(asked, sources, strict=True):
        for remark in source.account.remarks():
            about.setdefault(remark, {})[masked(one.source)] = None
    return tuple(f"{', '.join(names)}: {remark}" for remark, names in about.items())


def _together(sources: str | list[SourceConfig], parts: list[PairDataset]) -> Pairs:
    """The pairs of `parts` as one data set."""
    if isinstance(sources, str):
        return parts[0]
    joined = JoinedPrompts if all(isinstance(part, PromptDataset) for part in parts) else JoinedPairs
    return joined(tuple(one.name for one in sources), tuple(parts))


def _keys(data: DataConfig) -> list[str]:
    """What the account of each source is called."""
    return [
        masked(f"{key}: {one.source}" if isinstance(sources, str) else f"{key}, {one.name}: {one.source}")
        for key, sources, listed in (
            ("data.train", data.train, data.train_sources),
            ("data.eval", data.eval, data.eval_sources),
        )
        for one in listed
    ]


def _tokenized(
    config: TrainConfig,
    asked: SourceConfig,
    source: Source,
    fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None,
) -> TokenizedSource:
    """One source, from the cache or tokenised into it."""
    data = config.data
    # Of prompts alone nothing is cut, so one number says which fit.
    longest = None if config.rollouts is None else data.max_length - config.rollouts.max_tokens
    lengths = [data.max_length, data.max_prompt_length] if longest is None else [longest]
    renderer = Renderer(tokenizer, data.chat_template, date=data.date)
    key = cache_key(
        {
            "version": CODE_VERSION,
            "source": fingerprint,
            "limit": asked.limit,
            "tokenizer": tokenizer_digest(tokenizer),
            "template": [renderer.template, renderer.overrides_text],
            "answers": _ANSWERS.get(config.reading, "all"),
            "records": [asked.format, *(getattr(asked, key) for key in RecordsConfig.model_fields)],
            "lengths": [*lengths, data.drop_prompts_over],
            "max_record_characters": data.max_record_characters,
            "on_bad_record": data.on_bad_record,
        }
    )

    def build(writer: CacheWriter) -> Account:
        if longest is None:
            of_source: SourcePass = PairPass(data, asked, tokenizer, renderer, writer, config.reading)
        else:
            of_source = PromptPass(data, asked, tokenizer, renderer, writer, longest)
        return of_source.run(source, asked.limit, progress)

    tokenized = read_or_build(config.cache_dir / "tokens", key, build)
    if tokenized.account.read == 0:
        raise UserError(f"{asked.source}: holds no records")
    if tokenized.account.kept == 0:
        where = f"; see {tokenized.quarantine}" if tokenized.quarantine else ""
        why = "".join(f"; {remark}" for remark in tokenized.account.said)
        what = "pair" if longest is None else "prompt"
        raise UserError(f"{asked.source}: no {what} is left: {tokenized.account.describe()}{where}{why}")
    tokenized.account.said[:0] = source.remarks()  # of the folder as it is now
    return tokenized
