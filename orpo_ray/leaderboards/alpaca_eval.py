"""AlpacaEval 1 and 2: how often a judge finds a model's output better than the reference's.

A *preference* is 1 where the reference's output is the better, 2 where the model's is, and between where the judge is
not sure; NaN where it told nothing. The win-rate is the mean preference - 1, its standard error sd / √n with ddof 1
(Li et al. 2023, github.com/tatsu-lab/alpaca_eval); rates are in percent, as on its leaderboard.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Annotation, Row, annotation, number, records
from orpo_ray.leaderboards.length_controlled import Difficulty, Rows, Weights, fit, slope
from orpo_ray.parsing import member
from orpo_ray.statistics.winrate import LengthControl, length_control, mean_outcome

Floats = NDArray[np.float64]

LABELS = "m", "M"
"""What AlpacaEval 2's judge calls the output shown first, and the second."""
SEED = 0
"""Of the order in which outputs are shown."""
PUBLISHED, REFIT = "published weights", "refit with the gamed rows"
"""What AlpacaEval 2's length-controlled win-rate is made of."""


@dataclass(frozen=True)
class Verdicts:
    """A judge's preferences between a model's and a reference's outputs. Arrays are `(rows,)`."""

    model: str | None
    reference: str | None
    annotator: str | None
    instructions: tuple[str, ...]
    """No two alike."""
    preferences: Floats
    reference_characters: Floats
    model_characters: Floats
    duplicates: int = 0
    """Records that only repeated another."""
    identical: int | None = 0
    """Rows whose outputs are alike; None where the outputs are not known."""

    def among(self, instructions: Sequence[str]) -> Verdicts:
        """Those on `instructions`, in the order that they have here."""
        wanted = set(instructions)
        kept = np.array([each in wanted for each in self.instructions])
        return replace(
            self, instructions=tuple(each for each in self.instructions if each in wanted),
            preferences=self.preferences[kept], reference_characters=self.reference_characters[kept],
            model_characters=self.model_characters[kept],
        )  # fmt: skip


def switched(instruction: str) -> bool:
    """Whether AlpacaEval shows its judge the model's output first. Drawn by the instruction alone, so that it does
    not depend on the model.

    Its annotators draw by the seed 0 (`PairwiseAnnotator`); 123 is the default of a class that nobody makes by itself.
    The published log-probs of labels give the published preferences by 0 alone. Raises `ValueError` for text that
    UTF-8 cannot hold.
    """
    return random.Random(f"is_switched_outputs{instruction}{SEED}").choices([False, True])[0]


def preference(first_is_better: float, instruction: str) -> float:
    """From the probability that the output shown first is the better one, in AlpacaEval's order."""
    shown = 2 - first_is_better
    return 3 - shown if switched(instruction) else shown


def label_probability(logprobs: Mapping[str, float], labels: tuple[str, str] = LABELS) -> float:
    """That the first of two labels is meant, of the log-probs of tokens: P(first) / (P(first) + P(second)).

    A label that is not among the tokens counts 0. NaN where neither is, or neither has a probability.
    """
    first, second = (logprobs.get(label, -math.inf) for label in labels)
    if max(first, second) == -math.inf:
        return math.nan
    # Not by the difference alone: `inf - inf` is left out above, and exp of a large number would overflow.
    most = max(first, second)
    return math.exp(first - most) / (math.exp(first - most) + math.exp(second - most))


def label_logprobs(raw_completion: Any) -> dict[str, float]:
    """Log-probs of the tokens that a judge might have answered with.

    Raises `ValueError` where there are none, or more than one token was answered, since labels are read of one.
    """
    try:
        content = raw_completion["logprobs"]["content"]
        found = {str(each["token"]): float(each["logprob"]) for each in content[0]["top_logprobs"]}
    except (TypeError, KeyError, IndexError, ValueError):
        raise ValueError("raw_completion has no log-probs of a label") from None
    if len(content) != 1:
        raise ValueError(f"raw_completion has log-probs of {len(content)} tokens, where a label is one")
    if any(math.isnan(each) or each > 1e-3 for each in found.values()):
        raise ValueError("raw_completion has a log-prob above zero, or not a number")
    return found


def preference_of(annotation: Annotation) -> float:
    """What an annotation says: its preference, 1.5 for outputs that are alike, or what its log-probs of labels mean.

    NaN where it has none of these. Raises `UserError`, naming the record, where the log-probs are no log-probs.
    """
    if annotation.preference is not None:
        return annotation.preference
    if annotation.output_1 == annotation.output_2:
        return 1.5
    if not isinstance(annotation.raw_completion, dict) or not annotation.raw_completion.get("logprobs"):
        return math.nan
    try:
        return preference(label_probability(label_logprobs(annotation.raw_completion)), annotation.instruction)
    except ValueError as error:
        raise UserError(f"{annotation.location}: {error}") from None


def verdicts_of(annotations: Iterable[Annotation]) -> list[Verdicts]:
    """Of each model, reference and judge among annotations, in order of their first ones.

    A record that repeats another is counted once. Raises `UserError` where two on one instruction differ, since a
    rate of both would weigh that instruction twice.
    """
    groups: dict[tuple[str | None, str | None, str | None], dict[str, Annotation]] = defaultdict(dict)
    repeats: Counter[tuple[str | None, str | None, str | None]] = Counter()
    for each in annotations:
        names = each.generator_2, each.generator_1, each.annotator
        before = groups[names].get(each.instruction)
        if before is None:
            groups[names][each.instruction] = each
            continue
        repeats[names] += 1
        if (before.output_1, before.output_2) != (each.output_1, each.output_2):
            raise UserError(f"{each.location}: is on the same instruction as {before.location}, with other outputs")
        if not np.array_equal([preference_of(before)], [preference_of(each)], equal_nan=True):
            raise UserError(f"{each.location}: is on the same outputs as {before.location}, with another verdict")
    return [
        Verdicts(
            *names,
            instructions=tuple(group),
            preferences=np.array([preference_of(each) for each in group.values()]),
            reference_characters=np.array([len(each.output_1) for each in group.values()], dtype=np.float64),
            model_characters=np.array([len(each.output_2) for each in group.values()], dtype=np.float64),
            duplicates=repeats[names],
            identical=sum(each.output_1 == each.output_2 for each in group.values()),
        )
        for names, group in groups.items()
    ]


def read_verdicts(path: Path, instructions: Sequence[str] | None) -> list[Verdicts]:
    """Of annotations, or of one object `{model: {instruction, preference, reference_characters, model_characters}}`
    of equally long lists, where `instruction` numbers the benchmark's `instructions` from 0.

    Raises `UserError`, naming the record or the model.
    """
    found = list(records(path))
    row = found[0][1]
    if len(found) == 1 and row and all(isinstance(each, dict) and "preference" in each for each in row.values()):
        return [_of_lists(f"{path}: {model}", model, lists, instructions) for model, lists in row.items()]
    return verdicts_of(annotation(location, row) for location, row in found)


def _of_lists(location: str, model: str, lists: Row, instructions: Sequence[str] | None) -> Verdicts:
    columns = {}
    try:
        for key in ("instruction", "preference", "reference_characters", "model_characters"):
            values = [number({key: value}, key) for value in member(lists, key, list)]
            columns[key] = np.array([math.nan if value is None else value for value in values])
        if len({len(column) for column in columns.values()}) > 1 or not len(columns["preference"]):
            raise ValueError("its lists should be equally long, and hold something")
        index, preferences = columns.pop("instruction"), columns["preference"]
        if len(set(index.tolist())) < len(index):
            raise ValueError("instruction should hold each number once")
        most = math.inf if instructions is None else len(instructions)
        if not ((index >= 0) & (index < most) & (index % 1 == 0)).all():
            raise ValueError(f"instruction should hold whole numbers from 0, below {most:g}")
        if (preferences < 1).any() or (preferences > 2).any():
            raise ValueError("preference should hold numbers from 1 to 2")
        characters = np.concatenate([columns["reference_characters"], columns["model_characters"]])
        if not ((characters >= 0) & (characters < 2**53)).all():
            raise ValueError("characters should be 0 or more, and such that a text may have them")
    except ValueError as error:
        raise UserError(f"{location}: {error}") from None
    texts = [f"instruction {i:.0f}" if instructions is None else instructions[int(i)] for i in index]
    return Verdicts(
        model, None, None, tuple(texts), preferences, columns["reference_characters"], columns["model_characters"],
        identical=None,
    )  # fmt: skip


@dataclass(frozen=True)
class WinRate:
    """AlpacaEval's own numbers, in percent."""

    n: int
    """Rows with a preference."""
    win_rate: float
    standard_error: float | None
    """sd (ddof 1) / √n; None of one row."""
    ci95: tuple[float, float]
    """Bootstrap over instructions."""
    wins: int
    draws: int
    losses: int
    discrete_win_rate: float
    """Of preferences taken as won, lost or, at 1.5, half."""


def win_rate(preferences: Floats, *, resamples: int = 10_000) -> WinRate:
    """Of `(rows,)`; NaN is left out. Raises `ValueError` where nothing is left."""
    kept = preferences[~np.isnan(preferences)]
    found = mean_outcome(kept - 1, resamples=resamples)
    low, high = found.ci95
    return WinRate(
        n=len(kept),
        win_rate=100 * float((kept - 1).mean()),
        standard_error=100 * float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else None,
        ci95=(100 * low, 100 * high),
        wins=found.wins,
        draws=found.ties,
        losses=found.losses,
        discrete_win_rate=100 * (found.wins + found.ties / 2) / found.n,
    )


@dataclass(frozen=True)
class LengthControlled:
    """Win-rates at equal lengths in percent; `length_controlled.py` says how they are made."""

    win_rate: float | None
    """AlpacaEval 2's number; None where neither the model's weights nor gamed rows are given. Where rows are missing,
    its own tool takes the first difficulties, as many as there are rows; with published weights so does this."""
    made_by: str | None
    """`PUBLISHED` or `REFIT`."""
    by_instruction: float | None
    """The same with each row's own difficulty: another number only where rows are missing."""
    without_gamed_rows: float | None
    """Refitted to this model's rows alone, which is another number than AlpacaEval's; None without difficulties."""
    without_gamed_rows_difference: float | None
    """That less AlpacaEval's."""
    weights: Weights | None
    """What `win_rate` is made of."""


def length_controlled(verdicts: Verdicts, difficulty: Difficulty, weights: Weights | None) -> LengthControlled:
    """`weights`: this model's published ones, where they are known. Raises `UserError` where a difficulty is not."""
    own = difficulty.of(verdicts.instructions)
    told = ~np.isnan(verdicts.preferences)
    rows = Rows(
        slope(verdicts.reference_characters, verdicts.model_characters)[told], own[told], verdicts.preferences[told] - 1
    )
    made_by = None if weights is None else PUBLISHED
    if weights is None and difficulty.gamed is not None:
        weights, made_by = fit(rows, difficulty.gamed), REFIT
    alone = fit(rows, None)
    refit = None if alone is None else 100 * alone.win_rate(own)
    if weights is None:
        return LengthControlled(None, None, None, refit, None, None)
    by_instruction = 100 * weights.win_rate(own)
    rate = 100 * weights.win_rate(difficulty.values[: len(own)]) if made_by == PUBLISHED else by_instruction
    return LengthControlled(rate, made_by, by_instruction, refit, None if refit is None else refit - rate, weights)


def length_controlled_here(verdicts: Verdicts, *, resamples: int = 1000) -> LengthControl:
    """This project's win-rate at equal lengths, 0 to 1, with its interval: no difficulty, no gamed rows."""
    return length_control(
        verdicts.preferences - 1, verdicts.model_characters, verdicts.reference_characters, resamples=resamples
    )
