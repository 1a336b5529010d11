"""What the numbers of two models' comparisons say, in the words that an evaluation's page says it with."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from orpo_ray.report.evaluation_folder import DataAccuracy, Evaluation, Numbers, Pair
from orpo_ray.report.numbers import number, percent

MOST_DISAGREEMENTS = 3
MANY_CUT = 0.1
"""The share of a model's responses above which it is said that they were cut."""


def headlines(numbers: Numbers, ranked: list[str]) -> list[tuple[str, list[str]]]:
    """The first of `ranked` against each other one in a sentence, and what further reward models say of the two."""
    first, *others = numbers.deciders or [""]
    best, *rest = ranked
    found = []
    for against in rest:
        pair = numbers.pair(best, against, first)
        if pair is not None:
            more = [(label, numbers.pair(best, against, label)) for label in others]
            found.append(
                (
                    _sentence(pair),
                    [f"By {label}: {rate(p)}{_at_equal_lengths(p)}, {verdict(p)}." for label, p in more if p],
                )
            )
    return found


def disagreements(numbers: Numbers, ranked: list[str]) -> list[str]:
    """A sentence for each two models where a reward model tells apart who wins, and another finds for the other one."""
    found = []
    for model, against in combinations(ranked, 2):
        pairs = [pair for label in numbers.deciders if (pair := numbers.pair(model, against, label))]
        sides = {pair.win_rate > 0.5 for pair in pairs if pair.told_apart}
        if any((pair.win_rate < 0.5 and True in sides) or (pair.win_rate > 0.5 and False in sides) for pair in pairs):
            said = ", ".join(
                f"{percent(pair.win_rate, 1)} by {pair.reward_model} ({'told' if pair.told_apart else 'not told'} apart"
                " from 50%)"
                for pair in pairs
            )
            who = "judges" if numbers.judges else "reward models"
            found.append(f"The {who} disagree on who wins, {model} or {against}: {model} has {said}.")
    more = len(found) - MOST_DISAGREEMENTS
    if more > 0:
        found[MOST_DISAGREEMENTS:] = [f"So they do on {more} more pair{'' if more == 1 else 's'} of models."]
    return found


def doubts(numbers: Numbers) -> list[str]:
    """A sentence for each reward model that is not told from a coin on the data's own pairs."""
    told = {label: no_better_than_a_coin(label, model.data_accuracy) for label, model in numbers.reward_models.items()}
    return [
        f"{said} Win-rates by {label} say what it likes, and not who is better." for label, said in told.items() if said
    ]


def no_better_than_a_coin(judge: str, found: DataAccuracy | None) -> str:
    """A sentence where the interval of how often `judge` puts the chosen response first does not lie above one half.
    Empty where it does, and where nothing is known."""
    if found is None or found.ci95[0] > 0.5:
        return ""
    return (
        f"Nothing tells {judge} from a coin: of {number(found.pairs)} pairs of the data it puts the chosen response "
        f"first in {percent(found.accuracy, 1)} ({_interval(found.ci95)})."
    )


def cut(evaluation: Evaluation) -> list[str]:
    """A sentence where `max_tokens` cut more than `MANY_CUT` of some models' responses, with what reward models give
    these and the models' others: one without an end is unlike all that they were trained on."""
    numbers, responses = evaluation.numbers, evaluation.responses
    shares = {
        label: model.cut / model.responses for label, model in numbers.models.items()
        if model.was_asked and model.cut > MANY_CUT * model.responses
    }  # fmt: skip
    if not shares:
        return []
    of_these = np.isin(responses.models, list(shares)) & np.isin(responses.ended, ["length", "stop"])
    was_cut = np.array(responses.ended) == "length"
    told = []
    for judge, rewards in responses.rewards.items():
        known = of_these & np.isfinite(rewards)
        if (known & was_cut).any() and (known & ~was_cut).any():
            means = [number(float(rewards[known & these].mean()), 2) for these in (was_cut, ~was_cut)]
            told.append(f"{judge} gives those {means[0]} on average, and the others {means[1]}")
    counts = ", ".join(f"{label} ({percent(share)})" for label, share in shares.items())
    sentence = f"sampling.max_tokens={numbers.sampling.max_tokens} cut responses of {counts}"
    return ["; ".join([sentence, *told]) + "."]


def rate(pair: Pair) -> str:
    return f"{percent(pair.win_rate, 1)}, 95% interval {_interval(pair.ci95)}"


def length_controlled(pair: Pair) -> str:
    """The win-rate at equal lengths with its interval; a dash where there is none."""
    if pair.length_controlled is None:
        return "cannot be told" if pair.length_controlled_unknown else "–"
    interval = f" ({_interval(pair.length_controlled_ci95)})" if pair.length_controlled_ci95 else ""
    return percent(pair.length_controlled, 1) + interval


def at_equal_lengths(pair: Pair) -> str:
    """`at equal lengths 57.6 (55.4 to 61.5)`, for below a win-rate in percent; empty where nothing is known of it."""
    if pair.length_controlled is None:
        return "at equal lengths: cannot be told" if pair.length_controlled_unknown else ""
    interval = pair.length_controlled_ci95
    said = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"at equal lengths {100 * pair.length_controlled:.1f}{said}"


def verdict(pair: Pair) -> str:
    """Whether the win-rate is told apart from 50%, and what becomes of that at equal lengths."""
    side = "above" if pair.win_rate > 0.5 else "below"
    plain = f"{side} an even 50%" if pair.told_apart else "not told apart from an even 50%"
    if pair.length_controlled is None:
        unknown = pair.length_controlled_unknown
        return f"{plain}; at equal lengths it cannot be told: {unknown}" if unknown else plain
    even = 0 if pair.length_controlled_ci95 is None else _side(pair.length_controlled_ci95)
    if not pair.told_apart:
        if even in (0, _side(pair.ci95)):  # Holm's p is what keeps both from being told apart
            return plain
        return f"{plain}; at equal lengths its interval lies {'above' if even > 0 else 'below'} that"
    if (pair.length_controlled - 0.5) * (pair.win_rate - 0.5) <= 0:
        often, seldom = ("more", "less") if pair.win_rate > 0.5 else ("less", "more")
        return f"preferred {often} often, but {f'{seldom} often' if even else 'not so'} at equal lengths"
    if pair.length_controlled_ci95 is None:
        return plain
    return f"{plain}, {'at equal lengths too' if even else 'but not told apart from it at equal lengths'}"


def _sentence(pair: Pair) -> str:
    sentence = f"{pair.model} over {pair.against}: win-rate {rate(pair)}"
    if pair.p_holm is not None:
        sentence += f" (p\u00a0{probability(pair.p_holm)}, Holm)"
    return f"{sentence}{_at_equal_lengths(pair)}: {verdict(pair)}."


def _at_equal_lengths(pair: Pair) -> str:
    return "" if pair.length_controlled is None else f", length-controlled {length_controlled(pair)}"


def probability(value: float | None) -> str:
    """A p-value for reading; never 0."""
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{percent(low, 1)} to {percent(high, 1)}"


def _side(interval: tuple[float, float]) -> int:
    """1 where all of it lies above one half, -1 below, 0 where it holds one half."""
    low, high = interval
    return (low > 0.5) - (high < 0.5)
