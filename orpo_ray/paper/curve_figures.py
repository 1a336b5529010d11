"""Figures 3, 7, 8 and 9: what training does to log-probs, beside where the paper's curves begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from orpo_ray.config import SweepConfig
from orpo_ray.paper import verdicts
from orpo_ray.paper.figure import Figure, listed, made
from orpo_ray.paper.figure_curves import (
    LAMBDA,
    MOST_PANELS,
    contrast_drawing,
    lambda_drawing,
    lambdas,
    log_probs_drawing,
    odds_drawing,
    trials_at,
)
from orpo_ray.paper.figure_drawing import Drawing
from orpo_ray.paper.outcomes import ORPO, Outcomes
from orpo_ray.paper.published import FIGURE_3, FIGURE_7, FIGURE_9, Curve, Curves
from orpo_ray.paper.stages import Place
from orpo_ray.paper.verdicts import Ends, Weighted
from orpo_ray.report.comparison_scores import Scores, read_scores
from orpo_ray.report.numbers import number
from orpo_ray.report.runs import Run
from orpo_ray.report.sweep_folder import Sweep, Trial
from orpo_ray.tuning.folder import SweepFolder

_CHOSEN, _REJECTED, _ODDS = "eval_logps_chosen", "eval_logps_rejected", "eval_log_odds_ratio"
_HOW = "A line for each seed, of held-out pairs at each evaluation; pale, the running mean of what it was trained on."


@dataclass(frozen=True)
class _Seeds:
    """The training runs of one method where `figures` says."""

    runs: Mapping[int, Run]
    """By seed, those that have metrics."""
    finished: frozenset[int]
    missing: str

    def ends(self, key: str, seeds: Iterable[int] | None = None) -> Ends | None:
        """From the first to the last evaluation of the finished runs, or of those of `seeds`; None without any."""
        found = [_ends(self.runs[seed], key) for seed in (self.with_ends(key) if seeds is None else seeds)]
        starts, ends = ([each[i] for each in found if each] for i in (0, 1))
        return Ends(starts, ends) if starts else None

    def with_ends(self, key: str) -> list[int]:
        return [seed for seed in self.runs if seed in self.finished and _ends(self.runs[seed], key)]


def _seeds(outcomes: Outcomes, method: str) -> _Seeds:
    config = outcomes.stages.config
    runs, finished, missing = {}, set(), {}
    for seed in config.seeds:
        place = outcomes.stages.find(method, config.figures.data, config.figures.size, seed)
        if place is None:
            return _Seeds({}, frozenset(), f"the configuration has no {method}")
        if (run := outcomes.run(place)) is not None:
            runs[seed] = run
        if why := outcomes.missing(place):
            missing[place.label] = why
        else:
            finished.add(seed)
    return _Seeds(runs, frozenset(finished), listed(missing))


def figure_3(outcomes: Outcomes) -> Figure:
    sft = _seeds(outcomes, "sft")
    claims = verdicts.figure_3(sft.ends(_CHOSEN), sft.ends(_REJECTED), sft.missing)
    ends = _compared_ends(sft, FIGURE_3)
    caption = f"SFT on the chosen responses alone, {_where(outcomes)}. {_HOW} {ends}"
    return made(
        "figure-3", "Figure 3. Log-probs over SFT", caption, _drawn(log_probs_drawing, sft), claims, sft.missing
    )


def figure_7(outcomes: Outcomes) -> Figure:
    orpo = _seeds(outcomes, ORPO)
    claims = verdicts.figure_7(orpo.ends(_CHOSEN), orpo.ends(_REJECTED), orpo.ends(_ODDS), orpo.missing)
    ends = _compared_ends(orpo, FIGURE_7)
    caption = f"ORPO, {_where(outcomes)}. {_HOW} {ends}"
    title = "Figure 7. Log-probs and log odds ratio over ORPO"
    return made("figure-7", title, caption, _drawn(odds_drawing, orpo), claims, orpo.missing)


def figure_8(outcomes: Outcomes) -> Figure:
    ratio, orpo = _seeds(outcomes, "probability_ratio"), _seeds(outcomes, ORPO)
    missing = "; ".join(dict.fromkeys(filter(None, (ratio.missing, orpo.missing))))
    both = [seed for seed in ratio.with_ends(_REJECTED) if seed in orpo.with_ends(_REJECTED)]
    claims = verdicts.figure_8(ratio.ends(_REJECTED, both), orpo.ends(_REJECTED, both), missing)
    drawing = contrast_drawing(ratio.runs, orpo.runs) if ratio.runs else None
    courses = [
        f"{name} ratio {_courses(runs.ends(_REJECTED, both))}"
        for name, runs in (("probability", ratio), ("odds", orpo)) if both
    ]  # fmt: skip
    ends = f"Rejected log-prob, first evaluation to last: {'; '.join(courses)}." if courses else ""
    caption = f"Training with either ratio, {_where(outcomes)}, on the same axes. {_HOW} {ends}"
    return made("figure-8", "Figure 8. Probability ratio and odds ratio", caption, drawing, claims, missing)


def _drawn(draw: Callable[[Mapping[int, Run]], Drawing], seeds: _Seeds) -> Drawing | None:
    shown = {seed: run for seed, run in seeds.runs.items() if np.isfinite(run.series(_CHOSEN)[1]).any()}
    return draw(shown) if shown else None


def figure_9(outcomes: Outcomes) -> Figure:
    config = outcomes.stages.config
    place = outcomes.stages.find("sweep", config.figures.data, config.figures.size)
    sweep = None if place is None else outcomes.sweep(place)
    weights = [] if sweep is None else lambdas(sweep)
    missing = "the configuration has no sweep" if place is None else listed({place.label: outcomes.missing(place)})
    if sweep is not None and not weights:
        missing = missing or "no trial has a λ of its own and an evaluation"
    weighted = _weighted(outcomes, place, sweep) if place and sweep and weights else []
    claims = verdicts.figure_9(weighted, missing)
    ours = "; ".join(
        f"λ = {weight:g}: chosen {_of_trials(sweep, weight, _CHOSEN)}, rejected {_of_trials(sweep, weight, _REJECTED)}"
        for weight in weights
        if sweep
    )
    printed = "; ".join(
        f"λ = {each.weight:g}: chosen {_course(each.chosen)}, rejected {_course(each.rejected)}" for each in FIGURE_9
    )
    caption = (
        f"ORPO by λ, {_where(outcomes)}: a panel for each, a line for each trial, of held-out pairs at evaluations. "
        + (f"There are {len(weights)} λ, of which {MOST_PANELS} are drawn. " if len(weights) > MOST_PANELS else "")
        + (f"First evaluation to last, {ours}. " if ours else "")
        + f"In the paper (Mistral-7B on UltraFeedback), {printed}."
    )
    drawing = lambda_drawing(sweep) if sweep and weights else None
    return made("figure-9", "Figure 9. Log-probs by λ", caption, drawing, claims, missing)


def _weighted(outcomes: Outcomes, place: Place, sweep: Sweep) -> list[Weighted]:
    """Finished trials: of one for each λ every pair's log-probs, where its kept model is its last; else all trials'
    means."""
    finished = [
        [trial for trial in trials_at(sweep, weight) if trial.status == "finished"] for weight in lambdas(sweep)
    ]
    first = [trials[0] for trials in finished if trials]
    scores = [_scores_at_the_end(outcomes, place, sweep, trial) for trial in first]
    known = [each for each in scores if each is not None]
    if len(known) == len(first) and len({(each.compared, each.tokens) for each in known}) == 1:
        return [
            Weighted(
                trial.settings[LAMBDA],
                Ends([each.chosen], [each.chosen]),
                Ends([each.rejected], [each.rejected]),
            )
            for trial, each in zip(first, known, strict=True)
        ]
    found = []
    for trial in (trial for trials in finished for trial in trials):
        chosen, rejected = ([value for _, value in sweep.curve(trial, key)] for key in (_CHOSEN, _REJECTED))
        weight = trial.settings[LAMBDA]
        found.append(Weighted(weight, Ends(chosen[:1], chosen[-1:]), Ends(rejected[:1], rejected[-1:])))
    return found


def _scores_at_the_end(outcomes: Outcomes, place: Place, sweep: Sweep, trial: Trial) -> Scores | None:
    """What a trial's model gave each held-out pair, if that is the model it ended with."""
    own = outcomes.stages.configs[place]
    if not isinstance(own, SweepConfig) or trial.kept != sweep.curve(trial, _REJECTED)[-1][0]:
        return None
    scores = read_scores(SweepFolder(own).trial(trial.trial).eval_scores, rewards=False)
    return None if isinstance(scores, str) else scores


# Words


def _where(outcomes: Outcomes) -> str:
    config = outcomes.stages.config
    return f"{config.figures.size} on {config.data[config.figures.data].title}"


def _compared_ends(seeds: _Seeds, paper: Curves) -> str:
    """First and last evaluation of each finished run, and the same of the paper's."""
    kinds = (
        (_CHOSEN, "chosen", paper.chosen),
        (_REJECTED, "rejected", paper.rejected),
        (_ODDS, "log odds ratio", paper.log_odds_ratio),
    )
    ours = [f"{name} {_courses(ends)}" for key, name, curve in kinds if curve and (ends := seeds.ends(key))]
    printed = ", ".join(f"{name} {_course(curve)}" for _, name, curve in kinds if curve)
    which = ", ".join(map(str, seeds.with_ends(_CHOSEN)))
    here = f"First evaluation to last (seed{'s' * (', ' in which)} {which}): {'; '.join(ours)}. " if ours else ""
    return f"{here}In the paper ({paper.label}): {printed}."


def _ends(run: Run, key: str) -> tuple[float, float] | None:
    """At the first and at the last evaluation, where there are two."""
    _, values = run.series(key)
    known = values[np.isfinite(values)]
    return (float(known[0]), float(known[-1])) if known.size > 1 else None


def _courses(ends: Ends | None) -> str:
    if ends is None:
        return "–"
    return ", ".join(
        _course(Curve(float(np.asarray(start)), float(np.asarray(end))))
        for start, end in zip(ends.start, ends.end, strict=True)
    )


def _course(curve: Curve) -> str:
    """`0.17 → 0.08 → 1.44`."""
    points = [curve.start, *([] if curve.lowest is None else [curve.lowest]), curve.end]
    return " → ".join(number(point, 2) for point in points)


def _of_trials(sweep: Sweep, weight: float, key: str) -> str:
    curves = [sweep.curve(trial, key) for trial in trials_at(sweep, weight)]
    return ", ".join(_course(Curve(curve[0][1], curve[-1][1])) for curve in curves)
