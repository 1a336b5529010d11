"""What judges said, as numbers: outcomes of every two models, and how far each judge can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.evaluation.judged import Judged
from orpo_ray.statistics.judged_pairs import JudgedPair, Verdicts, judged_pair, outcomes_of_verdicts
from orpo_ray.statistics.rated_answers import mean_rating, rated_answers
from orpo_ray.statistics.winrate import outcomes

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Row = dict[str, Any]
Pair = tuple[str, str]


def judged_outcomes(
    judged: Judged, at_lengths: Mapping[str, Mapping[Pair, AtLengths]]
) -> dict[str, dict[Pair, Floats]]:
    """By judge, of each two models that it compared: `(prompts, rounds)`, 1 where the first is better; NaN: none.

    The mean over a conversation's turns. Ratings are compared as rewards are, by their means over the turns in which
    both answers have one; an answer from elsewhere, which is there once, stands against each round of the others.
    """
    prompts, rounds, *_ = judged.shape
    return {
        judge: {pair: _mean(each.won.reshape(prompts, -1, rounds), (1,)) for pair, each in of_pairs.items()}
        for judge, of_pairs in at_lengths.items()
    }


@dataclass(frozen=True)
class AtLengths:
    """Outcomes of a pair with the lengths of just what was judged for each, as `winrate.length_control` takes them.

    All are `(prompts, turns x rounds)`, a turn's rounds side by side: a verdict is on the turn's own answers, those
    before being in view. Of ratings they are `(prompts, rounds)`: a comparison is of the means over turns, so its
    lengths are sums over the turns in which both answers have a rating.
    """

    won: Floats
    characters: Floats
    against: Floats


def of_what_was_judged(judged: Judged, models: Sequence[str]) -> dict[str, dict[Pair, AtLengths]]:
    """By judge, of each two models that it compared."""
    characters = {model: judged.characters(model) for model in models}
    found = {}
    for judge in judged.counts:
        rated = _rated(judged, judge, models)
        if rated:
            means = {model: _by_turn(values, asked) for model, (values, asked, _) in rated.items()}
            by_pair = {
                (a, b): _of_ratings(means[a], means[b], characters[a], characters[b]) for a, b in combinations(means, 2)
            }
        else:
            of_turns = {model: _by_verdict(values) for model, values in characters.items()}
            by_pair = {
                (a, b): AtLengths(outcomes_of_verdicts(verdicts), of_turns[a], of_turns[b])
                for (a, b), verdicts in _compared(judged, judge, models).items()
            }
        found[judge] = {pair: each for pair, each in by_pair.items() if not np.isnan(each.won).all()}
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
                model: _ratings(*ratings, categories) for model, ratings in _rated(judged, judge, models).items()
            },
        }
        for judge, counts in judged.counts.items()
    }


def _compared(judged: Judged, judge: str, models: Sequence[str]) -> dict[Pair, Verdicts]:
    """Of each two that were shown together; the rounds of all turns are one axis, a turn's side by side."""
    found = {}
    for a, b in combinations(models, 2):
        of_turns = [judged.of_pair(judge, a, b, turn) for turn in range(1, judged.shape[2] + 1)]
        verdicts = Verdicts(*(np.concatenate(arrays, axis=1) for arrays in zip(*of_turns, strict=True)))
        if verdicts.asked.any() or not np.isnan(verdicts.first).all():
            found[a, b] = verdicts
    return found


def _by_verdict(characters: Floats) -> Floats:
    """`(prompts, rounds, turns)` in the order of `_compared`."""
    return characters.transpose(0, 2, 1).reshape(len(characters), -1)


def _rated(judged: Judged, judge: str, models: Sequence[str]) -> dict[str, tuple[Floats, Flags, Flags]]:
    """As `Judged.ratings`."""
    found = {model: judged.ratings(judge, model) for model in models}
    return {model: ratings for model, ratings in found.items() if ratings[1].any()}


def _by_turn(values: Floats, asked: Flags) -> Floats:
    """Mean ratings `(prompts, rounds, turns)`; one that was asked for in the first round alone is there in all."""
    means = _mean(np.where(asked, values, np.nan), (3,))
    once = not asked[:, 1:].any()
    return np.repeat(means[:, :1], means.shape[1], axis=1) if once else means


def _of_ratings(a: Floats, b: Floats, characters: Floats, against: Floats) -> AtLengths:
    """All are `(prompts, rounds, turns)`. Second turns are harder: a mean without one would win by what could not be
    read."""
    both = ~np.isnan(a) & ~np.isnan(b)
    won = outcomes(*(_mean(np.where(both, each, np.nan), (2,)) for each in (a, b)))
    return AtLengths(won, *(np.where(both, each, 0.0).sum(axis=2) for each in (characters, against)))


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


def _ratings(values: Floats, asked: Flags, unjudged: Flags, categories: Sequence[str | None]) -> Row:
    rows_of = {
        name: [prompt for prompt, category in enumerate(categories) if category == name]
        for name in dict.fromkeys(categories)
        if name is not None
    }
    scores = {name: mean_rating(values[rows]) for name, rows in rows_of.items()}
    return asdict(rated_answers(values, asked, unjudged)) | {
        "categories": {name: None if isinstance(score, str) else asdict(score) for name, score in scores.items()}
    }
