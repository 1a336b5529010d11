"""The data section of a training run: its sources, and how their records become tokens."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from orpo_ray.config.paths import Place
from orpo_ray.config.records import PairFormat, RecordsConfig
from orpo_ray.config.section import NAME, Count, Integer, Number

MAX_RECORD_CHARACTERS = 1_500_000
DATE = "2024-07-26"
"""That templates write which would write today's."""
BUILT_IN = ("toy", "toy-base", "toy-test", "toy-best", "toy-best-test")
"""Sources of the embedded world."""
SOURCES = {str: "(one source)", list: "(several sources)"}
"""What pydantic calls the two in a location."""
Comparisons = Literal["every_pair", "best_against_each", "best_against_worst"]
Reading = Comparisons | Literal["labels", "prompts"]
"""What an objective takes of a record's answers: comparisons; `labels`: each answer by itself; `prompts`: nothing."""


class SourceConfig(RecordsConfig):
    """One of several sources of pairs."""

    source: Place
    """As `data.train`."""
    name: Annotated[str, Field(pattern=NAME, max_length=60)]
    """What it is called in counts, metrics and messages. Its order of pairs follows from the name and `seed`."""
    split: str | None = None
    """Default: `data.train_split`, or `data.eval_split`."""
    weight: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    """Its share of the pairs of every step, beside the others' weights; default: as many pairs as it has."""
    limit: Count | None = None
    """Read only so many of its records."""
    format: PairFormat | None = None
    """Default: `data.format`; so it is with `columns` and the other keys about records."""


Sources = Annotated[
    Annotated[Place, Tag(SOURCES[str])] | Annotated[list[SourceConfig], Field(min_length=1), Tag(SOURCES[list])],
    Discriminator(lambda value: SOURCES.get(type(value))),
]


class DataConfig(RecordsConfig):
    """The pairs or prompts, and how they become tokens."""

    train: Sources
    """Hub id, file, folder or fsspec URL of preference pairs; `toy` is the embedded world. Or a list of several, each a
    mapping {source, name, split, weight, limit}; see `SourceConfig`."""
    train_split: str = "train"
    """The split of `train` that is read."""
    temperature: Annotated[Number, Field(ge=0.05)] | None = None
    """Of several sources: one with n pairs weighs n ** (1 / temperature); above 1, small ones come more often."""
    eval: Sources | None = None
    """Held-out pairs, of one source or several; default: `eval_fraction` of `train`, chosen by `seed`, whole prompts at
    a time."""
    eval_split: str = "test"
    """The split of `eval` that is read."""
    eval_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """Of the pairs of `train`, where `eval` is not set, the share that is held out."""
    unseen_fraction: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Of the held-out pairs so many, whole prompts, choose nothing: neither the step whose model is kept nor, in a
    sweep, a trial. Their metrics are `eval_unseen_*`, and `eval_*` are of the others. Prompts alone decide which, so
    they are the same in all runs."""
    format: PairFormat = "auto"
    """The shape of a record (docs/data.md); `auto` recognises it by content."""
    comparisons: Comparisons = "every_pair"
    """What is compared of a record with more than two answers: each with every one that is rated lower (of one chosen
    and several rejected: chosen with each); or the best rated alone with each lower one, or with the worst. Equal
    ratings are not compared. `sft` trains on the best; `kto` on the best as desirable, the worst as undesirable."""
    max_length: Annotated[Integer, Field(ge=2, le=10**12)] = 1024
    """Tokens of prompt plus one response; each response is cut by its own room."""
    max_prompt_length: Count = 768
    """Tokens of prompt, its end, that are left at the least where prompt and longer response are over `max_length`: no
    more is cut than that takes, and nothing of a prompt that fits. TRL's trainers cut where we do, and to this length
    in any case; the authors' code drops long prompts (`drop_prompts_over`) and cuts none. Prompts of rollouts are never
    cut, whatever this is."""
    drop_prompts_over: Count | None = None
    """Drop pairs whose prompt has more tokens than this (the paper: 1,024) rather than cut it."""
    chat_template: str | None = None
    """A named template, a Jinja text, or null: the tokenizer's own for message lists, none for plain text."""
    date: str = DATE
    """YYYY-MM-DD: what a template writes that would write today's date. The template kept with the model does too."""
    max_record_characters: Count = MAX_RECORD_CHARACTERS
    """Of prompt, chosen, rejected and tools together; a record of more is a bad one, which keeps a huge one from taking
    all memory: 250 bytes a character while it is tokenised. 128,000 tokens of English are half a million characters,
    twice that where both responses repeat the prompt."""
    on_bad_record: Literal["error", "quarantine"] = "error"
    """`quarantine`: set unreadable records aside in `quarantine.jsonl`, with the reason, and go on."""
    limit: Count | None = None
    """Read only so many records of `train`, where that is one source."""

    @property
    def train_sources(self) -> list[SourceConfig]:
        """Those of `train`; one that has no name of its own is called `train`."""
        return self._listed(self.train, "train", self.train_split, self.limit)

    @property
    def eval_sources(self) -> list[SourceConfig]:
        """Those of `eval`, none where it is not set."""
        return [] if self.eval is None else self._listed(self.eval, "eval", self.eval_split, None)

    @property
    def sources(self) -> list[SourceConfig]:
        """All of them."""
        return [*self.train_sources, *self.eval_sources]

    def require_source_of(self, metric: str) -> None:
        """Raises `ValueError` where `metric` is one of a source (`eval_nll/NAME`) that holds no pairs out."""
        _, slash, name = metric.partition("/")
        held_out = self.train if self.eval is None else self.eval
        names = [source.name for source in held_out] if isinstance(held_out, list) else []
        if slash and name not in names:
            known = f"there are {', '.join(names)}" if names else "they are of one source, which has no name"
            raise ValueError(f"{metric}: no held-out pairs are of {name}: {known}")

    def _listed(
        self, sources: str | list[SourceConfig], name: str, split: str, limit: int | None
    ) -> list[SourceConfig]:
        """Each with all that is said of it, here or for all sources."""
        of_all = {key: getattr(self, key) for key in ("format", *RecordsConfig.model_fields)}
        if isinstance(sources, str):
            found = SourceConfig(source=sources, name=name, split=split, limit=limit)
            return [self._completed(found, of_all)]
        return [self._completed(source, {**of_all, "split": split}) for source in sources]

    def _completed(self, source: SourceConfig, of_all: dict[str, Any]) -> SourceConfig:
        """With `of_all` where it says nothing itself. Where things are in files is nothing to a built-in source beside
        them."""
        if source.source in BUILT_IN and not self._all_built_in:
            of_all = of_all | {"format": "auto", "columns": None, "unread": None}
        return source.model_copy(update={key: value for key, value in of_all.items() if getattr(source, key) is None})

    @property
    def _all_built_in(self) -> bool:
        parts = [
            [part] if isinstance(part, str) else [each.source for each in part or ()]
            for part in (self.train, self.eval)
        ]
        return all(source in BUILT_IN for part in parts for source in part)

    @model_validator(mode="after")
    def _sources_are_told_apart(self) -> DataConfig:
        for key, sources in (("train", self.train), ("eval", self.eval)):
            if isinstance(sources, list):
                names = [source.name for source in sources]
                if len(set(names)) < len(names):
                    raise ValueError(f"{key}: two sources are called {max(names, key=names.count)}")
        weights = [source.weight is not None for source in self.train_sources]
        if any(weights) and not all(weights):
            raise ValueError("train: either all sources have a weight or none has")
        if self.temperature is not None and (any(weights) or not isinstance(self.train, list)):
            raise ValueError("temperature: is for several sources without weights of their own")
        if isinstance(self.train, list) and self.limit is not None:
            raise ValueError("limit: of several sources each has a limit of its own")
        if any(source.weight is not None for source in self.eval_sources):
            raise ValueError("eval: held-out pairs are all evaluated, so no source has a weight")
        return self

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        try:  # YAML reads one without quotation marks as a date
            return datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError:
            raise ValueError(f"should be a date such as {DATE} (got {value!r:.40})") from None

    def require_room(self) -> None:
        """Raises `ValueError` where what is left of a prompt that is cut leaves no room for a response."""
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"data.max_prompt_length ({self.max_prompt_length}) must be below data.max_length ({self.max_length}), "
                "or no response token fits"
            )
