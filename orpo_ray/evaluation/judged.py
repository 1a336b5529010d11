"""What judges said, as tables: every verdict, outcomes of every two models, and what is known of each judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orpo_ray.judging.verdict import Judgement
from orpo_ray.statistics.judged_pairs import JudgedPair, Verdicts, judged_pair, outcomes_of_verdicts
from orpo_ray.statistics.rated_answers import rated_answers
from orpo_ray.statistics.winrate import outcomes

Floats = NDArray[np.float64]
Row = dict[str, Any]
Pair = tuple[str, str]

VERDICTS = pa.schema(
    [("judge", pa.string()), ("prompt", pa.int64()), ("round", pa.int64()), ("turn", pa.int64()),
     ("model", pa.string()), ("against", pa.string()), ("shown_first", pa.bool_()), ("repeat", pa.int64()),
     ("probability", pa.float64()), ("rating", pa.float64()), ("words", pa.string())]
)  # fmt: skip


def verdicts_table(judgements: Sequence[Judgement]) -> pa.Table:
    """`verdicts.parquet`: a row for every verdict, in the order of its place. `probability` is that of `model`."""
    return pa.Table.from_pylist([asdict(judgement) for judgement in sorted(judgements, key=_place)], VERDICTS)


def _place(one: Judgement) -> tuple[Any, ...]:
    return (one.judge, one.prompt, one.round, one.turn, one.model, one.against or "", not one.shown_first, one.repeat)


class Judged:
    """All that one judge said."""

    def __init__(self, judgements: Sequence[Judgement], models: Sequence[str], prompts: int, rounds: int) -> None:
        """`models`: in the order of the configuration, in which each two are named."""
        self._shape = prompts, rounds
        self._turns = 1 + max((one.turn for one in judgements), default=0)
        self._place = {model: place for place, model in enumerate(models)}
        self.verdicts: dict[Pair, Verdicts] = {}
        """Of each two models that were shown together; rounds and turns are one axis, a round's turns side by side."""
        self.rated: dict[str, tuple[Floats, NDArray[np.bool_]]] = {}
        """Ratings of each model `(prompts, rounds, turns, judgings)`, NaN: none; and whether it was asked for."""
        self.same = sum(one.against is not None and one.words is None for one in judgements)
        """Comparisons of answers that are the same, which nobody was asked about."""
        of_pairs: dict[Pair, list[Judgement]] = {}
        of_models: dict[str, list[Judgement]] = {}
        for one in judgements:
            if one.against is None:
                of_models.setdefault(one.model, []).append(one)
            else:
                first, second = sorted((one.model, one.against), key=self._place.__getitem__)
                of_pairs.setdefault((first, second), []).append(one)
        for pair in combinations(models, 2):
            if pair in of_pairs:
                self.verdicts[pair] = self._of_pair(pair, of_pairs[pair])
        for model in models:
            if model in of_models:
                self.rated[model] = self._of_model(of_models[model])

    def outcomes(self) -> dict[Pair, Floats]:
        """`(prompts, rounds)` of each two: the mean of a round's turns. Ratings are compared as rewards are."""
        if self.rated:
            means = {model: _mean(np.where(asked, values, np.nan), (2, 3)) for model, (values, asked) in
                     self.rated.items()}  # fmt: skip
            return {(a, b): outcomes(means[a], means[b]) for a, b in combinations(means, 2)}
        prompts, rounds = self._shape
        return {
            pair: _mean(outcomes_of_verdicts(verdicts).reshape(prompts, rounds, self._turns), (2,))
            for pair, verdicts in self.verdicts.items()
        }

    def numbers(self, categories: Sequence[str | None]) -> Row:
        """What is known of this judge: its position bias, consistency, noise, and its ratings by model.

        `categories` of the prompts, in which ratings are told apart.
        """
        return {
            "same_answers": self.same,
            "pairs": [
                {"model": a, "against": b, **_without_rate(judged_pair(verdicts))}
                for (a, b), verdicts in self.verdicts.items()
            ],
            "rated": {model: _ratings(values, asked, categories) for model, (values, asked) in self.rated.items()},
        }

    def _of_pair(self, pair: Pair, judgements: Sequence[Judgement]) -> Verdicts:
        prompts, rounds = self._shape
        judgings = 1 + max(one.repeat for one in judgements)
        first = np.full((prompts, rounds * self._turns, 2, judgings), np.nan)
        asked = np.zeros(first.shape, dtype=bool)
        for one in judgements:
            won = one.probability
            if one.words is None:  # the same answers, of which nobody was asked
                first[one.prompt, one.round * self._turns + one.turn] = 0.5
                continue
            shown_first = bool(one.shown_first) == (one.model == pair[0])  # the first of the two
            place = one.prompt, one.round * self._turns + one.turn, int(not shown_first), one.repeat
            asked[place] = True
            if won is not None:
                first[place] = won if one.shown_first else 1 - won
        return Verdicts(first, asked)

    def _of_model(self, judgements: Sequence[Judgement]) -> tuple[Floats, NDArray[np.bool_]]:
        judgings = 1 + max(one.repeat for one in judgements)
        ratings = np.full((*self._shape, self._turns, judgings), np.nan)
        asked = np.zeros(ratings.shape, dtype=bool)
        for one in judgements:
            place = one.prompt, one.round, one.turn, one.repeat
            asked[place] = True
            if one.rating is not None:
                ratings[place] = one.rating
        return ratings, asked


def judged(
    judgements: Sequence[Judgement], judges: Sequence[str], models: Sequence[str], prompts: int, rounds: int
) -> dict[str, Judged]:
    """By judge."""
    return {
        judge: Judged([one for one in judgements if one.judge == judge], models, prompts, rounds) for judge in judges
    }


def _mean(values: Floats, axes: tuple[int, ...]) -> Floats:
    """Of what is no NaN; NaN where all is."""
    there = ~np.isnan(values)
    counts = there.sum(axis=axes)
    return np.where(counts, np.where(there, values, 0.0).sum(axis=axes) / np.maximum(counts, 1), np.nan)


def _without_rate(found: JudgedPair) -> Row:
    """The win-rate stands among all others', under Holm's correction."""
    row = asdict(found)
    del row["win_rate"]
    row["unknown"].pop("win_rate", None)
    return row


def _ratings(values: Floats, asked: NDArray[np.bool_], categories: Sequence[str | None]) -> Row:
    whole = rated_answers(values, asked)
    rows_of = {
        name: [prompt for prompt, category in enumerate(categories) if category == name]
        for name in dict.fromkeys(categories)
        if name is not None
    }
    scores = {name: rated_answers(values[rows], asked[rows]).score for name, rows in rows_of.items()}
    return asdict(whole) | {"categories": {name: score and asdict(score) for name, score in scores.items()}}
