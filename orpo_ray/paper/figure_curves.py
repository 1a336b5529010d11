"""Figures 3, 7, 8 and 9: log-probs of chosen and rejected, and their odds, while a policy is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from orpo_ray.paper.figure_drawing import Drawing, Look, Panel, colour_entry, seed_entries
from orpo_ray.report.figures import CHOSEN, INK, NEUTRAL, REJECTED, smoothed
from orpo_ray.report.runs import Run, Series
from orpo_ray.report.sweep_folder import Sweep, Trial

LAMBDA = "objective.lambda"
LOG_ODDS_RATIO = "log_odds_ratio"
MOST_PANELS = 6
SIDES = {"chosen": CHOSEN, "rejected": REJECTED}

Runs = Mapping[int, Run]
"""By seed."""


def log_probs_drawing(runs: Runs) -> Drawing:
    """Figure 3: one panel, a line of held-out pairs for each seed and side, what was trained on pale behind it."""
    return Drawing((Panel("", _log_probs(runs, list(runs))),), _entries(list(runs)), over_steps=True, height=2.6)


def odds_drawing(runs: Runs) -> Drawing:
    """Figure 7: log-probs, and below them the log odds ratio."""
    panels = (Panel("log-probs", _log_probs(runs, list(runs))), Panel("log odds ratio", _odds(runs)))
    return Drawing(panels, _entries(list(runs)), share_y="none", over_steps=True)


def contrast_drawing(of_probability: Runs, of_odds: Runs) -> Drawing:
    """Figure 8: log-probs under either loss, on the same axes."""
    seeds = sorted({*of_probability, *of_odds})
    panels = [
        Panel(f"trained with the {name} ratio", _log_probs(runs, seeds))
        for name, runs in (("probability", of_probability), ("odds", of_odds)) if runs
    ]  # fmt: skip
    return Drawing(panels, _entries(seeds), over_steps=True)


def lambda_drawing(sweep: Sweep) -> Drawing:
    """Figure 9: a panel for each λ, of many those that lie evenly among them; a line for each trial and side, at
    evaluations alone."""
    weights = lambdas(sweep)
    places = np.unique(np.linspace(0, len(weights) - 1, min(len(weights), MOST_PANELS)).round().astype(int))
    panels = [Panel(f"λ = {weights[i]:g}", _trials(sweep, trials_at(sweep, weights[i]))) for i in places]
    return Drawing(panels, _entries([]), over_steps=True, height=1.9)


def lambdas(sweep: Sweep) -> list[float]:
    """Of trials that were evaluated, in rising order; none where λ is not swept."""
    if LAMBDA not in sweep.numbers.dimensions:
        return []
    every = sorted({float(trial.settings[LAMBDA]) for trial in sweep.numbers.trials})
    return [weight for weight in every if trials_at(sweep, weight)]


def trials_at(sweep: Sweep, weight: float) -> list[Trial]:
    """Trials of one λ that were evaluated, in their order."""
    return [
        trial for trial in sweep.numbers.trials
        if trial.settings[LAMBDA] == weight and all(sweep.curve(trial, f"eval_logps_{side}") for side in SIDES)
    ]  # fmt: skip


def _log_probs(runs: Runs, seeds: Sequence[int]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for seed, run in runs.items():
            look = Look.at(seeds.index(seed))
            for side, colour in SIDES.items():
                _training(axes, run.series(f"logps_{side}"), colour, look)
                _held_out(axes, run.series(f"eval_logps_{side}"), colour, look)
        axes.set_ylabel("mean log-prob per token")

    return draw


def _odds(runs: Runs) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        for place, run in enumerate(runs.values()):
            _training(axes, run.series(LOG_ODDS_RATIO), NEUTRAL, Look.at(place))
            _held_out(axes, run.series(f"eval_{LOG_ODDS_RATIO}"), INK, Look.at(place))
        axes.set_ylabel("log odds ratio")

    return draw


def _trials(sweep: Sweep, trials: Sequence[Trial]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for place, trial in enumerate(trials):
            for side, colour in SIDES.items():
                steps, values = zip(*sweep.curve(trial, f"eval_logps_{side}"), strict=True)
                _held_out(axes, (np.array(steps), np.array(values)), colour, Look.at(place))
        axes.set_ylabel("mean log-prob per token")

    return draw


def _held_out(axes: Axes, series: Series, colour: str, look: Look) -> None:
    """What evaluations found, as they found it."""
    steps, values = series
    known = np.isfinite(values)
    if known.any():
        axes.plot(
            steps[known], values[known], color=colour, linewidth=1.4, linestyle=look.line, marker=look.mark,
            markersize=3.5,
        )  # fmt: skip


def _training(axes: Axes, series: Series, colour: str, look: Look) -> None:
    """What batches had, as a running mean."""
    steps, values = smoothed(series)
    if np.isfinite(values).any():
        axes.plot(steps, values, color=colour, linewidth=0.9, alpha=0.4, linestyle=look.line)


def _entries(seeds: Sequence[int]) -> Sequence[Mapping[str, Artist]]:
    return {side: colour_entry(colour) for side, colour in SIDES.items()}, seed_entries(seeds)
