"""One scale for all models at once: Bradley-Terry ratings from every comparison between every two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from orpo_ray.statistics.winrate import CONFIDENCE, TIE, checked_outcomes, outcomes

Floats = NDArray[np.float64]

ELO = 400 / np.log(10)
"""Elo points per unit of log odds: 400 points are odds of ten to one."""


@dataclass(frozen=True)
class Rating:
    model: str
    rating: float
    """Elo points above the mean of the models rated together."""
    ci95: tuple[float, float]


def bradley_terry(
    scores: Mapping[str, NDArray[np.float64]], *, tie: float = TIE, resamples: int = 200, seed: int = 0
) -> list[Rating]:
    """Ratings with mean 0, best first: `P(i beats j) = sigmoid((rating_i - rating_j) / ELO)` (Bradley & Terry 1952).

    `scores` has `(prompts, rounds)` of each model, NaN where there is no score, under one reward model; a tie is half
    a win and half a loss. Every two models also get half a win and half a loss of each other on top: without it a
    model that always wins would be infinitely good, and models that were never compared would have no common scale.
    Two models are then `400 log10((wins + 1/2) / (losses + 1/2))` apart.

    The interval is the Bayesian bootstrap over prompts (Rubin 1981): each of `resamples` fits weighs every prompt,
    all its comparisons together, by a draw from Gamma(1), and each added half by one from Gamma(1/2). For two models,
    one round and no ties these are draws from Beta(wins + 1/2, losses + 1/2), Jeffreys' interval of a win-rate: it
    stays honest where a model always won, where resampling prompts alone would see no spread.

    Models without any comparison are left out. Raises `ValueError` as `outcomes` does.
    """
    pairs = combinations(sorted(scores), 2)  # sorted: the order given changes nothing
    won = {(i, j): outcomes(scores[i], scores[j], tie=tie) for i, j in pairs}
    return ratings_of_outcomes(won, resamples=resamples, seed=seed)


def ratings_of_outcomes(
    outcomes: Mapping[tuple[str, str], NDArray[np.float64]], *, resamples: int = 200, seed: int = 0
) -> list[Rating]:
    """The same from the outcomes of pairs of models, each `(prompts, rounds)` of the first against the second.

    An outcome between 0 and 1, such as a judge's probability, is that much of a win and the rest of a loss. Raises
    `ValueError` for one beyond, and for a pair that is there in both directions.
    """
    met = {pair: checked_outcomes(won) for pair, won in outcomes.items() if not np.isnan(won).all()}
    models = sorted({model for pair in met for model in pair})
    if not models:
        return []
    both = next((pair for pair in met if pair[::-1] in met), None)
    if both:
        raise ValueError(f"{both[0]} and {both[1]} were compared in both directions")
    first, second = np.triu_indices(len(models), k=1)  # of each pair
    seen: Floats = np.full((len(first), *next(iter(met.values())).shape), np.nan)
    for place, (i, j) in enumerate(zip(first, second, strict=True)):
        if (models[i], models[j]) in met:
            seen[place] = met[models[i], models[j]]
        elif (models[j], models[i]) in met:
            seen[place] = 1 - met[models[j], models[i]]
    won, lost = np.nansum(seen, axis=2), np.nansum(1 - seen, axis=2)  # (pairs, prompts)
    design = np.eye(len(models))[first] - np.eye(len(models))[second]
    ratings = _fit(won.sum(axis=1) + 0.5, lost.sum(axis=1) + 0.5, design)
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(models)))
    for row in draws:
        weight = rng.standard_exponential(won.shape[1])
        half_won, half_lost = rng.standard_gamma(0.5, (2, len(design)))
        row[:] = _fit(won @ weight + half_won, lost @ weight + half_lost, design)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    rated = [Rating(m, float(ratings[i]), (float(low[i]), float(high[i]))) for i, m in enumerate(models)]
    return sorted(rated, key=lambda rated: -rated.rating)


def _fit(won: Floats, lost: Floats, design: Floats) -> Floats:
    """Elo ratings `(models,)` from wins and losses `(pairs,)`; `design (pairs, models)` has 1 and -1 for the two."""
    # One row for the wins of every pair and one for its losses. The first model is the zero while fitting, since only
    # differences are determined.
    won_or_lost = np.repeat([1.0, 0.0], len(design))
    rows = GLM(won_or_lost, np.tile(design[:, 1:], (2, 1)), family=Binomial(), freq_weights=np.append(won, lost))
    strengths = np.append(0.0, rows.fit().params)
    return np.asarray((strengths - strengths.mean()) * ELO)
