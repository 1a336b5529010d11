"""Who wins by whom: outcomes of every two models, by rewards or by what judges said, and what is told from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, permutations
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.evaluation.judge_results import AtLengths
from orpo_ray.statistics.agreement import agreement, agreement_of_outcomes
from orpo_ray.statistics.ratings import ratings_of_outcomes
from orpo_ray.statistics.winrate import LengthControl, holm, length_control, mean_outcome, outcomes

Floats = NDArray[np.float64]
Row = dict[str, Any]
Pair = tuple[str, str]
Compared = Mapping[str, Mapping[Pair, Floats]]
"""By reward model, and then by judge: `(prompts, rounds)` of two models, 1 where the first wins; NaN: not compared.

Each two stand there once, in the order of the configuration."""


def by_rewards(rewards: Mapping[str, Mapping[str, Floats]], models: Sequence[str]) -> dict[str, dict[Pair, Floats]]:
    """By reward model; `rewards` holds the `(prompts, rounds)` of each model."""
    return {
        name: _there({pair: outcomes(scores[pair[0]], scores[pair[1]]) for pair in combinations(models, 2)})
        for name, scores in rewards.items()
    }


def _there(compared: dict[Pair, Floats]) -> dict[Pair, Floats]:
    return {pair: won for pair, won in compared.items() if not np.isnan(won).all()}


def pairs(
    compared: Compared,
    characters: Mapping[str, Floats],
    judged: Mapping[str, Mapping[Pair, AtLengths]] = MappingProxyType({}),
) -> list[Row]:
    """Every ordered pair of models under every reward model and judge, each two compared once.

    Holm's correction counts all of these: a judge more is a chance more to find a difference that is none.
    `characters` of the responses, `(prompts, rounds)`, by which reward models' win-rates at equal lengths go; those of
    judges by `judged`, by judge: what was judged may be more than a response.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    for name, of_pairs in compared.items():
        for (model, against), won in of_pairs.items():
            rate = mean_outcome(won)
            at = judged.get(name, {}).get((model, against)) or AtLengths(won, characters[model], characters[against])
            even = length_control(at.won, at.characters, at.against)
            rows[name, model, against] = {**asdict(rate), **_even(even)}
            rows[name, against, model] = {**asdict(rate.reverse()), **_even(even.reverse())}
    once = [(name, *pair) for name, of_pairs in compared.items() for pair in of_pairs]
    for key, p in zip(once, holm([rows[key]["p_value"] for key in once]), strict=True):
        name, model, against = key
        rows[key]["p_holm"] = rows[name, against, model]["p_holm"] = p
    return [
        {"model": model, "against": against, "reward_model": name, **rows[name, model, against]}
        for name in compared for model, against in permutations(characters, 2) if (name, model, against) in rows
    ]  # fmt: skip


def _even(found: LengthControl) -> Row:
    return {
        "length_controlled": found.win_rate,
        "length_controlled_ci95": found.ci95,
        "length_controlled_unknown": found.unknown,
    }


def ratings(compared: Compared) -> dict[str, list[Row]]:
    """By reward model and judge; an empty list where nothing was compared."""
    return {name: [asdict(rating) for rating in ratings_of_outcomes(_sorted(won))] for name, won in compared.items()}


def _sorted(of_pairs: Mapping[Pair, Floats]) -> dict[Pair, Floats]:
    """Each two by name: in which order models are configured changes nothing."""
    by_name = {pair if pair[0] <= pair[1] else pair[::-1]: pair for pair in of_pairs}
    return {name: of_pairs[pair] if name == pair else 1 - of_pairs[pair] for name, pair in sorted(by_name.items())}


def agreements(compared: Compared, rewards: Mapping[str, Mapping[str, Floats]]) -> list[Row]:
    """Of every two that judge: two reward models by their `rewards` too, by rank."""
    found = []
    for a, b in combinations(compared, 2):
        if a in rewards and b in rewards:
            agreed = agreement(rewards[a], rewards[b])
        else:
            agreed = agreement_of_outcomes(compared[a], compared[b])
        if agreed is not None:
            found.append({"reward_models": [a, b], **asdict(agreed)})
    return found
