"""Which settings the trials of a sweep have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from orpo_ray.config import SweepConfig
from orpo_ray.config.space import Dimension
from orpo_ray.errors import UserError

Settings = dict[str, Any]
"""Dotted keys and their values."""
Outcome = Mapping[str, float]
"""The metrics that a sweep compares by, `metric` first, and a trial's values."""
Ending = Literal["diverged", "lost"]
"""Of a trial without an outcome: its settings are at fault, or the machine is."""

_DIGITS = 4  # significant ones of a drawn number, so that a person can type it


class Searcher(Protocol):
    def settings(self, index: int, outcomes: Sequence[Outcome | Ending]) -> Settings:
        """Of trial `index`; to be asked in order. `outcomes`: of the first trials."""


class Drawn:
    """Points that follow from the seed alone: those of a grid, or the run's own settings and then random ones, each
    from its own stream. So no sweep ends in something worse than it began with.

    A rule that stops trials compares each with those before it, and so is kinder to the first: then a grid's points
    come in an order drawn by the seed, lest the grid's own order decide.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._order = np.arange(config.number_of_trials if config.searcher == "grid" else 0)
        if config.scheduler != "none":
            self._order = np.random.default_rng(config.seed).permutation(self._order)

    def settings(self, index: int, outcomes: Sequence[Outcome | Ending]) -> Settings:
        dimensions = self._config.dimensions
        if self._config.searcher == "grid":
            grid = itertools.product(*(dimension.values for dimension in dimensions.values()))
            return dict(zip(dimensions, next(itertools.islice(grid, int(self._order[index]), None)), strict=True))
        if index == 0 and (own := self._config.own_point) is not None:
            return own
        generator = np.random.default_rng([self._config.seed, index])
        return {key: _draw(dimension, generator) for key, dimension in dimensions.items()}


class Suggested:
    """Optuna's TPE through Ray Tune, by one metric or several. The same outcomes in order give the same points.

    A trial that diverged is told as pruned, which TPE takes to be worse than any with a value; told as an error it
    would teach nothing, and as a NaN stay among those at work. A lost one is told as an error: it says nothing.
    """

    def __init__(self, config: SweepConfig) -> None:
        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch
        except ImportError:
            raise UserError("searcher: optuna is not installed here: pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        floats = optuna.distributions.FloatDistribution
        space: dict[str, Any] = {
            key: floats(*dimension.values, log=dimension.kind == "loguniform")
            if dimension.is_range
            else optuna.distributions.CategoricalDistribution(dimension.values)
            for key, dimension in config.dimensions.items()
        }
        self._dimensions = config.dimensions
        first = None if config.own_point is None else [config.own_point]
        metrics, modes = list(config.directions), list(config.directions.values())
        self._search = OptunaSearch(space, metric=metrics, mode=modes, seed=config.seed, points_to_evaluate=first)
        self._told = 0

    def settings(self, index: int, outcomes: Sequence[Outcome | Ending]) -> Settings:
        for number, outcome in enumerate(outcomes[self._told :], start=self._told):
            result = None if isinstance(outcome, str) else dict(outcome)
            self._search.on_trial_complete(str(number), result, error=outcome == "lost")  # no result, no error: pruned
        self._told = max(self._told, len(outcomes))
        found: Settings = self._search.suggest(str(index))
        return {key: _rounded(value) if self._dimensions[key].is_range else value for key, value in found.items()}


def searcher_of(config: SweepConfig) -> Searcher:
    return Suggested(config) if config.searcher == "optuna" else Drawn(config)


def _draw(dimension: Dimension, generator: np.random.Generator) -> Any:
    if not dimension.is_range:
        return dimension.values[generator.integers(len(dimension.values))]
    low, high = dimension.values
    if dimension.kind == "loguniform":
        return _rounded(math.exp(generator.uniform(math.log(low), math.log(high))))
    return _rounded(generator.uniform(low, high))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
