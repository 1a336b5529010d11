"""What judges said, as numbers: outcomes of every two models, and how far each judge can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.evaluation.judged import Judged
from orpo_ray.statistics.judged_pairs import JudgedPair, Verdicts, judged_pair, outcomes_of_verdicts
from orpo_ray.statistics.rated_answers import rated_answers
from orpo_ray.statistics.winrate import outcomes

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Row = dict[str, Any]
Pair = tuple[str, str]


def judged_outcomes(judged: Judged, models: Sequence[str]) -> dict[str, dict[Pair, Floats]]:
    """By judge, of each two models that it compared: `(prompts, rounds)`, 1 where the first is better; NaN: none.

    The mean over a conversation's turns. Ratings are compared as rewards are, by their means over the turns in which
    both answers have one; an answer from elsewhere, which is there once, stands against each round of the others.
    """
    found = {}
    for judge in judged.counts:
        rated = _rated(judged, judge, models)
        if rated:
            means = {model: _by_turn(values, asked) for model, (values, asked) in rated.items()}
            by_pair = {(a, b): _of_ratings(means[a], means[b]) for a, b in combinations(means, 2)}
        else:
            prompts, rounds, turns, _ = judged.shape
            by_pair = {
                pair: _mean(outcomes_of_verdicts(verdicts).reshape(prompts, turns, rounds), (1,))
                for pair, verdicts in _compared(judged, judge, models).items()
            }
        found[judge] = {pair: won for pair, won in by_pair.items() if not np.isnan(won).all()}
    return found


def judge_numbers(
    judged: Judged, described: Mapping[str, Mapping[str, Any]], models: Sequence[str], categories: Sequence[str | None]
) -> dict[str, Row]:
    """By judge: what it is, its counts, position bias, consistency and noise by pair, and its ratings by model.

    `described`: what is named beside its numbers. `categories` of the prompts, in which ratings are told apart.
    """
    return {
        judge: {
            "described": dict(described[judge]),
            "counts": asdict(counts),
            "pairs": [
                {"model": a, "against": b, **_without_rate(judged_pair(verdicts))}
                for (a, b), verdicts in _compared(judged, judge, models).items()
            ],
            "rated": {
                model: _ratings(values, asked, categories)
                for model, (values, asked) in _rated(judged, judge, models).items()
            },
        }
        for judge, counts in judged.counts.items()
    }


def _compared(judged: Judged, judge: str, models: Sequence[str]) -> dict[Pair, Verdicts]:
    """Of each two that were shown together; the rounds of all turns are one axis, a turn's side by side."""
    found = {}
    for a, b in combinations(models, 2):
        of_turns = [judged.of_pair(judge, a, b, turn) for turn in range(judged.shape[2])]
        verdicts = Verdicts(*(np.concatenate(arrays, axis=1) for arrays in zip(*of_turns, strict=True)))
        if verdicts.asked.any() or not np.isnan(verdicts.first).all():
            found[a, b] = verdicts
    return found


def _rated(judged: Judged, judge: str, models: Sequence[str]) -> dict[str, tuple[Floats, Flags]]:
    found = {model: judged.ratings(judge, model) for model in models}
    return {model: (values, asked) for model, (values, asked) in found.items() if asked.any()}


def _by_turn(values: Floats, asked: Flags) -> Floats:
    """Mean ratings `(prompts, rounds, turns)`; one that was asked for in the first round alone is there in all."""
    means = _mean(np.where(asked, values, np.nan), (3,))
    once = not asked[:, 1:].any()
    return np.repeat(means[:, :1], means.shape[1], axis=1) if once else means


def _of_ratings(a: Floats, b: Floats) -> Floats:
    """Second turns are harder: a mean without one would win by what could not be read."""
    both = ~np.isnan(a) & ~np.isnan(b)
    return outcomes(*(_mean(np.where(both, each, np.nan), (2,)) for each in (a, b)))


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


def _ratings(values: Floats, asked: Flags, categories: Sequence[str | None]) -> Row:
    rows_of = {
        name: [prompt for prompt, category in enumerate(categories) if category == name]
        for name in dict.fromkeys(categories)
        if name is not None
    }
    scores = {name: rated_answers(values[rows], asked[rows]).score for name, rows in rows_of.items()}
    return asdict(rated_answers(values, asked)) | {
        "categories": {name: score and asdict(score) for name, score in scores.items()}
    }
