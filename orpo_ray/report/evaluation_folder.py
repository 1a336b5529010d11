"""An evaluation's folder as its report reads it: the numbers, checked against their shape, and every response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from orpo_ray.config import read_yaml
from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.errors import UserError
from orpo_ray.judging.verdict import Judgement
from orpo_ray.report.columns import FLAG, KEY, NUMBER, TEXT, read_columns
from orpo_ray.report.judge_numbers import Judge
from orpo_ray.report.leaderboard_tables import Leaderboard

SIGNIFICANCE = 0.05
STATISTICS = 2
"""From here on lengths are compared in characters; what is older has no win-rate at equal lengths."""
Floats = NDArray[np.float64]
Interval = tuple[float, float]


class Sampling(BaseModel):
    temperature: float
    top_p: float
    max_tokens: int
    rounds: int
    seed: int
    by_category: dict[str, dict[str, float | None]] = {}
    """What is drawn otherwise in a category; None: as in all."""

    @property
    def rows(self) -> list[tuple[str, float | int]]:
        """Name and value of each setting."""
        of_all = [(name.replace("_", " "), value) for name, value in self if not isinstance(value, dict)]
        return of_all + [
            (f"{name.replace('_', ' ')} of {category}", value)
            for category, own in self.by_category.items() for name, value in own.items() if value is not None
        ]  # fmt: skip


class Lengths(BaseModel):
    """Quantiles of the responses' lengths in tokens."""

    p10: float | None
    median: float | None
    p90: float | None
    max: float | None


class Odds(BaseModel):
    """What a model gives the data's own pairs; log-probs are means over tokens."""

    log_odds_ratio: float
    chosen_likelier: float
    logps_chosen: float
    logps_rejected: float
    pairs: int
    not_finite: int = 0


class Diversity(BaseModel):
    per_input_cosine: float | None
    across_input_cosine: float | None
    embedder: str | None
    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None
    repetition: float | None


class Model(BaseModel):
    path: str
    digest: str | None
    template: str | None
    bos: bool | None
    asked: int
    responses: int
    not_generated: dict[str, int]
    empty: int
    cut: int
    mean_tokens: float | None
    mean_characters: float | None = None
    lengths: Lengths | None
    """None: of answers from elsewhere no tokens are known."""
    odds: Odds | None
    diversity: Diversity

    @property
    def was_asked(self) -> bool:
        """And is not a file of answers from elsewhere, of which nobody knows how they were drawn."""
        return self.bos is not None


class DataAccuracy(BaseModel):
    accuracy: float
    ci95: Interval
    pairs: int


class RewardModel(BaseModel):
    path: str
    not_scored: dict[str, int]
    data_accuracy: DataAccuracy | None


class Pair(BaseModel):
    """`model` compared with `against` under one reward model; `sd` is over rounds."""

    model: str
    against: str
    reward_model: str
    prompts: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    sd: float | None
    ci95: Interval
    p_value: float | None
    p_holm: float | None
    length_controlled: float | None
    length_controlled_ci95: Interval | None = None
    length_controlled_unknown: str | None = None
    """Why there is none."""
    rounds: list[float | None]

    @property
    def told_apart(self) -> bool:
        """Whether the win-rate differs from 50% beyond chance, all pairs of models and all reward models counted."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


class Rating(BaseModel):
    model: str
    rating: float
    ci95: Interval


class Rewards(BaseModel):
    mean: float | None
    sd: float | None
    median: float | None


class Agreement(BaseModel):
    reward_models: tuple[str, str]
    agree: float | None
    kappa: float | None
    spearman: float | None
    comparisons: int
    ties: tuple[int, int] | None = None


class Numbers(BaseModel):
    """`winrates.json`."""

    name: str
    prompts: int
    rounds: int
    tie: float
    statistics: int = 1
    """The version of what is said of certainty and length: 1 is what had none."""
    sampling: Sampling
    models: Annotated[dict[str, Model], Field(min_length=1)]
    reward_models: dict[str, RewardModel]
    judges: dict[str, Judge] = {}
    """Those that judge in words."""
    leaderboards: dict[str, Leaderboard] = {}
    """By benchmark, its own numbers."""
    pairs: list[Pair]
    ratings: dict[str, list[Rating]]
    rewards: dict[str, dict[str, Rewards]]
    agreement: list[Agreement]
    notes: list[str]

    @property
    def deciders(self) -> list[str]:
        """Whoever says which of two answers is better: reward models, then judges."""
        return [*self.reward_models, *self.judges]

    def pair(self, model: str, against: str, reward_model: str) -> Pair | None:
        wanted = (model, against, reward_model)
        return next((p for p in self.pairs if (p.model, p.against, p.reward_model) == wanted), None)


@dataclass(frozen=True)
class Prompt:
    number: int
    text: str
    data: Mapping[str, str]
    """The data set's own responses, by `DATA_LABELS`; empty where it has none."""


@dataclass(frozen=True)
class Responses:
    """`results.parquet`, column by column, all of length `rows`; what is missing is NaN. Of several turns the answers
    of a conversation are one row: their texts and tokens together, the end and the rewards of the last."""

    models: NDArray[np.str_]
    prompts: NDArray[np.int64]
    rounds: NDArray[np.int64]
    texts: list[str]
    tokens: Floats
    ended: list[str]
    rewards: Mapping[str, Floats]
    turns: int = 1
    """At most, in a conversation."""


@dataclass(frozen=True)
class Evaluation:
    config: dict[str, Any]
    numbers: Numbers
    prompts: list[Prompt]
    responses: Responses
    verdicts: list[Judgement]


def read_evaluation(folder: Path) -> Evaluation:
    """Read what an evaluation left in `folder`. Raises `UserError`, naming the file, where that cannot be done."""
    numbers = read_numbers(folder / "winrates.json")
    if numbers.statistics < STATISTICS:
        for pair in numbers.pairs:
            pair.length_controlled = None
    config = read_yaml(folder / "config.yaml")
    texts = {"text": TEXT, **dict.fromkeys(DATA_LABELS, TEXT)}
    columns = read_columns(folder / "prompts.parquet", {"prompt": KEY, **texts}, {"further": pa.list_(pa.string())})
    further = dict(zip(columns["prompt"], columns.get("further", []), strict=False))
    prompts = [
        Prompt(number, text or "", {name: columns[name][i] for name in DATA_LABELS if columns[name][i] is not None})
        for i, (number, text) in enumerate(zip(columns["prompt"], columns["text"], strict=True))
    ]
    labels = {label: f"reward:{label}" for label in numbers.reward_models}
    plain = {"prompt": KEY, "model": TEXT, "round": KEY, "text": TEXT, "tokens": NUMBER, "ended": TEXT}
    columns = read_columns(folder / "results.parquet", plain | dict.fromkeys(labels.values(), NUMBER), {"turn": KEY})
    given = [text is not None for text in columns["text"]]  # a response that was not generated has a row, but no text
    columns = {
        name: [value for value, has in zip(values, given, strict=True) if has] for name, values in columns.items()
    }
    turns = len({*columns.get("turn", []), 1})  # which count from 1
    if "turn" in columns:
        columns = _conversations(columns, further)
    responses = Responses(
        models=np.array(columns["model"], dtype=np.str_),
        prompts=np.array(columns["prompt"], dtype=np.int64),
        rounds=np.array(columns["round"], dtype=np.int64),
        texts=columns["text"],
        tokens=np.array(columns["tokens"], dtype=np.float64),
        ended=columns["ended"],
        rewards={label: np.array(columns[name], dtype=np.float64) for label, name in labels.items()},
        turns=turns,
    )
    verdicts = _verdicts(folder / "verdicts.parquet") if numbers.judges else []
    return Evaluation(config, numbers, prompts, responses, verdicts)


def _verdicts(path: Path) -> list[Judgement]:
    types = {
        "judge": TEXT, "prompt": KEY, "round": KEY, "turn": KEY, "model": TEXT, "against": TEXT, "shown_first": FLAG,
        "repeat": KEY, "probability": NUMBER, "rating": NUMBER, "words": TEXT,
    }  # fmt: skip
    columns = read_columns(path, types)
    # The first turn is in every file: one that has a turn 0 was written when turns counted from there.
    first = min(columns["turn"], default=1)
    columns["turn"] = [turn + (first == 0) for turn in columns["turn"]]
    rows = zip(*(columns[name] for name in types), strict=True)
    return [Judgement(**dict(zip(types, row, strict=True))) for row in rows]


def _conversations(columns: dict[str, list[Any]], further: Mapping[int, list[str]]) -> dict[str, list[Any]]:
    """The rows of a response's turns as one: the last, whose text has those before it, and what was asked between."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        before = rows.get(key := (row["prompt"], row["model"], row["round"]))
        if before is not None:
            asked = dict(enumerate(further.get(row["prompt"]) or [], start=2)).get(row["turn"], "")
            row["text"] = f"{before['text']}\n\n[turn {row['turn']}: {asked}]\n\n{row['text']}"
            row["tokens"] = (
                None if before["tokens"] is None or row["tokens"] is None else before["tokens"] + row["tokens"]
            )
        rows[key] = row
    return {name: [row[name] for row in rows.values()] for name in columns}


def read_numbers(path: Path) -> Numbers:
    """What `winrates.json` says. Raises `UserError` where it does not say all of it."""
    try:
        return Numbers.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
