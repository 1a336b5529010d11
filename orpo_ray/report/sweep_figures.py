"""The figures of a sweep: the landscape, what matters in it, how its trials went and where they stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.stats import spearmanr

from orpo_ray.config.space import Dimension
from orpo_ray.report.figures import CHOSEN, GRID, INK, NEUTRAL, REJECTED, SIZE, legend, svg
from orpo_ray.report.sweep_folder import Sweep, Trial

LAMBDA, LEARNING_RATE = "objective.lambda", "optim.lr"
MARKERS = {"finished": "o", "stopped": "v", "failed": "X", "unfinished": "d"}
_DECADES = 3
"""Of a log axis; a shorter one has labels between powers of ten."""
_UNFINISHED = {"stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
_FEWEST = 4
"""Trials of a rank correlation."""
_COLOURS = matplotlib.colormaps["cividis"]


def landscape(sweep: Sweep) -> tuple[str, Markup, str] | None:
    """Title, figure and what its bars are: the metric over two keys (λ and the learning rate, where they are swept), or
    over the one, there with the intervals of values that have one."""
    numeric = _numeric(sweep)
    keys = sorted(numeric, key=lambda key: (key != LAMBDA, key != LEARNING_RATE))[:2]
    if not keys or not _valued(sweep):
        return None
    intervals = {} if len(keys) == 2 else _intervals(sweep)

    def draw_plane(axes: Axes) -> None:
        colour = _scale(sweep)
        for status, marker in MARKERS.items():
            trials = [trial for trial in sweep.numbers.trials if trial.status == status]
            if not trials:
                continue
            x, y = ([trial.settings[key] for trial in trials] for key in keys)
            shades = [NEUTRAL if t.value is None else _shade(colour, t.value) for t in trials]
            axes.scatter(x, y, s=52, marker=marker, c=shades, edgecolors=INK, linewidths=0.7)
            axes.plot([], [], marker=marker, linestyle="", color=NEUTRAL, label=status)
        best = _winner(sweep)
        if best is not None:
            at = [[best.settings[key]] for key in keys]
            axes.plot(*at, marker="o", markersize=14, markerfacecolor="none", color=INK, linestyle="", label="best")
        _axis(axes, "x", keys[0], numeric[keys[0]])
        _axis(axes, "y", keys[1], numeric[keys[1]])
        bar = axes.figure.colorbar(colour, ax=axes, pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label(sweep.numbers.metric)
        axes.grid(True, axis="both")
        legend(axes)

    def draw_line(axes: Axes) -> None:
        for status in ("finished", "stopped", "unfinished"):
            trials = [trial for trial in _valued(sweep) if trial.status == status]
            x, y = [trial.settings[keys[0]] for trial in trials], [_value(trial) for trial in trials]
            colour = INK if status == "finished" else NEUTRAL
            if trials:
                axes.plot(x, y, marker=MARKERS[status], color=colour, linestyle="", label=status)
        for trial in _valued(sweep):
            if trial.trial in intervals:
                colour = INK if trial.status == "finished" else NEUTRAL
                axes.vlines(trial.settings[keys[0]], *intervals[trial.trial], color=colour, linewidth=1)
        _axis(axes, "x", keys[0], numeric[keys[0]])
        axes.set_ylabel(sweep.numbers.metric)
        legend(axes)

    title = " × ".join(map(short, keys))
    draw = draw_plane if len(keys) == 2 else draw_line
    bars = " Bars: 95% intervals." if intervals else ""
    return title, svg(draw, f"{sweep.numbers.metric} of trials over {title}", SIZE), bars


def _intervals(sweep: Sweep) -> dict[int, tuple[float, float]]:
    """Of the trials' values, where the metric is an accuracy of what is known."""
    found = {trial.trial: sweep.held_out(trial).interval(sweep.numbers.metric, trial.value) for trial in _valued(sweep)}
    return {trial: interval for trial, interval in found.items() if interval is not None}


def trade_off(sweep: Sweep, other: str) -> Markup | None:
    """One metric against another, a mark for each trial that came to its end; the front joined, the winner ringed."""
    metric, best = sweep.numbers.metric, _winner(sweep)
    points = {
        trial.trial: (x, _value(trial))
        for trial in _valued(sweep)
        if trial.status == "finished" and (x := sweep.kept(trial, other)) is not None
    }
    if not points:
        return None
    front = sorted(points[index] for index in sweep.numbers.front if index in points)

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points.values(), strict=True), marker="o", markersize=6, color=NEUTRAL, linestyle="")
        if front:
            axes.plot(*zip(*front, strict=True), marker="o", markersize=6, color=CHOSEN, linewidth=1.2, label="front")
        if best is not None:
            axes.plot(
                *points[best.trial], marker="o", markersize=14, markerfacecolor="none", color=INK, linestyle="",
                label=f"trial {best.label}",
            )  # fmt: skip
        for index, at in points.items():
            axes.annotate(f"{index:03d}", at, xytext=(5, 5), textcoords="offset points", fontsize=7)
        axes.set(xlabel=other, ylabel=metric)
        legend(axes)

    return svg(draw, f"{metric} against {other} of each trial", SIZE)


def parallel(sweep: Sweep) -> Markup | None:
    """A line for each trial through all keys and the metric, each axis from its lowest to its highest."""
    dimensions, trials = sweep.numbers.dimensions, _valued(sweep)
    if len(dimensions) < 2 or len(trials) < 2:
        return None

    def place(dimension: Dimension, value: object) -> float:
        if dimension.is_range:
            ends = np.array([*dimension.values, value], dtype=float)
            low, high, at = np.log(ends) if dimension.kind == "loguniform" else ends
            return float((at - low) / (high - low))
        return dimension.values.index(value) / max(1, len(dimension.values) - 1) if value in dimension.values else 0.5

    def draw(axes: Axes) -> None:
        colour = _scale(sweep)
        low, high = colour.get_clim()
        names = [*map(short, dimensions), sweep.numbers.metric.removeprefix("eval_")]
        for trial in trials:
            heights = [place(dimension, trial.settings[key]) for key, dimension in dimensions.items()]
            heights.append((_value(trial) - low) / (high - low))
            style = "-" if trial.status == "finished" else (0, (2, 2))
            axes.plot(heights, color=_shade(colour, _value(trial)), linestyle=style, linewidth=1.5)
        for x, (bottom, top) in enumerate([*(_ends(d) for d in dimensions.values()), (f"{low:.3g}", f"{high:.3g}")]):
            axes.axvline(x, color=NEUTRAL, linewidth=0.8)
            axes.text(x, -0.04, bottom, ha="center", va="top", fontsize=8)
            axes.text(x, 1.04, top, ha="center", va="bottom", fontsize=8)
        axes.set(ylim=(-0.14, 1.14), xlim=(-0.3, len(names) - 0.7), yticks=[])
        axes.set_xticks(range(len(names)), names)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return svg(draw, "Settings and metric of each trial, one line each", SIZE)


def parallel_caption(sweep: Sweep) -> str:
    dashed = _said_of(trial for trial in _valued(sweep) if trial.status != "finished")
    return f"A line is a trial; dashed: {dashed}." if dashed else "A line is a trial."


def _said_of(trials: Iterable[Trial]) -> str:
    """What became of trials that did not finish: `stopped early or unfinished`."""
    present = {trial.status for trial in trials}
    return " or ".join(word for status, word in _UNFINISHED.items() if status in present)


def learning_curves(sweep: Sweep) -> Markup | None:
    """The metric over steps, a line for each trial; the best one strong, the rungs dashed."""
    curves = {
        trial.trial: [(sweep.place(trial, step), value) for step, value in sweep.curve(trial, sweep.numbers.metric)]
        for trial in sweep.numbers.trials
    }
    if not any(curves.values()):
        return None
    best = _winner(sweep)

    def draw(axes: Axes) -> None:
        for rung in _rungs(sweep):
            axes.axvline(rung, color=GRID, linewidth=1, linestyle=(0, (3, 3)))
        for trial in sweep.numbers.trials:
            if points := curves[trial.trial]:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=NEUTRAL, linewidth=1, alpha=0.8 if trial.status == "finished" else 0.5)
                axes.plot(
                    steps[-1:], values[-1:], marker=MARKERS[trial.status], markersize=5, color=NEUTRAL, linestyle=""
                )
        if best is not None:
            axes.plot(*zip(*curves[best.trial], strict=True), color=CHOSEN, linewidth=2.2, label=f"trial {best.label}")
        _over_steps(axes, sweep)
        axes.set_ylabel(sweep.numbers.metric)
        legend(axes)

    return svg(draw, f"{sweep.numbers.metric} of every trial over steps", SIZE)


def lengths(sweep: Sweep) -> Markup:
    """How far each trial ran, first to last, with the rungs: what early stopping saved is the white to the right."""
    trials = sweep.numbers.trials

    def draw(axes: Axes) -> None:
        for rung in _rungs(sweep):
            axes.axvline(rung, color=NEUTRAL, linewidth=0.8, linestyle=(0, (3, 3)))
        colours = {"finished": CHOSEN, "stopped": NEUTRAL, "failed": REJECTED, "unfinished": INK}
        for y, trial in enumerate(trials):
            axes.barh(y, sweep.place(trial, trial.steps_run), color=colours[trial.status], alpha=0.25, height=0.7)
            axes.barh(y, sweep.place(trial, trial.steps), color=colours[trial.status], height=0.7)
        axes.set_yticks(range(len(trials)), [trial.label for trial in trials], fontsize=7)
        axes.invert_yaxis()
        axes.grid(False)
        _over_steps(axes, sweep)
        for status, colour in colours.items():
            if any(trial.status == status for trial in trials):
                axes.barh([0], [0], color=colour, label=status)
        legend(axes)

    return svg(draw, "Steps that each trial ran", (SIZE[0], max(SIZE[1], 0.9 + 0.17 * len(trials))))


def importance(sweep: Sweep) -> tuple[Markup, str] | None:
    """Spearman's rank correlation of each key with the metric, at the first step that all trials share; its caption."""
    ranks = correlations(sweep)
    if ranks is None:
        return None
    found, step, trials = ranks

    def draw(axes: Axes) -> None:
        for y, rho in enumerate(found.values()):
            axes.barh(y, rho, color=CHOSEN if rho > 0 else REJECTED, height=0.5)
        axes.axvline(0, color=NEUTRAL, linewidth=0.8)
        axes.set_yticks(range(len(found)), list(map(short, found)))
        axes.invert_yaxis()
        axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), xlabel=f"rank correlation with {sweep.numbers.metric}")

    where = f"{step:.0%} of each" if sweep.unlike else f"step {step:g}"
    caption = (
        f"Spearman's ρ over {trials} trials at {where}, the first that all of them reached. It sees a steady rise "
        "or fall alone: a best value inside the range shows in the landscape, not here."
    )
    return svg(draw, "Rank correlation of each key with the metric", (SIZE[0], 1.1 + 0.4 * len(found))), caption


def correlations(sweep: Sweep) -> tuple[dict[str, float], float, int] | None:
    """By key, largest first; the step (see `Sweep.place`); the number of trials. None where too few can be compared."""
    curves = {
        t.trial: c
        for t in sweep.numbers.trials
        if (c := {sweep.place(t, step): value for step, value in sweep.curve(t, sweep.numbers.metric) if step})
    }
    shared = sorted(set.intersection(*map(set, curves.values()))) if curves else []
    if len(curves) < _FEWEST or not shared:
        return None
    values = [curve[shared[0]] for curve in curves.values()]
    trials = [trial for trial in sweep.numbers.trials if trial.trial in curves]
    found = {}
    for key in _numeric(sweep):
        settings = [trial.settings[key] for trial in trials]
        if len(set(settings)) > 1 and len(set(values)) > 1:
            found[key] = float(spearmanr(settings, values).statistic)
    ordered = dict(sorted(found.items(), key=lambda item: -abs(item[1])))
    return (ordered, shared[0], len(trials)) if ordered else None


def log_probs(sweep: Sweep) -> Markup | None:
    """The paper's Figure 9: chosen and rejected log-probs by λ, each at the step that its trial is known by."""
    points = _log_probs(sweep)
    if not points:
        return None

    def draw(axes: Axes) -> None:
        for rejected, name, colour, marker in ((False, "chosen", CHOSEN, "o"), (True, "rejected", REJECTED, "s")):
            for whole in (True, False):
                own = [point for point in points if (point[0].status == "finished") == whole]
                if own:
                    axes.plot(
                        [trial.settings[LAMBDA] for trial, _, _ in own],
                        [low if rejected else high for _, high, low in own], color=colour,
                        marker=marker, linestyle="", markersize=6, markerfacecolor=colour if whole else "none",
                        label=name if whole else f"{name}, {_said_of(trial for trial, _, _ in own)}",
                    )  # fmt: skip
        _axis(axes, "x", LAMBDA, sweep.numbers.dimensions[LAMBDA])
        axes.set_ylabel("mean log-prob per token")
        legend(axes)

    return svg(draw, "Log-probs of chosen and rejected responses by λ", SIZE)


def parting(sweep: Sweep) -> tuple[float, int] | None:
    """Spearman's rank correlation of λ with chosen less rejected log-prob, over so many finished trials; None where
    too few are, or nothing varies."""
    points = [point for point in _log_probs(sweep) if point[0].status == "finished"]
    weights, gaps = [trial.settings[LAMBDA] for trial, _, _ in points], [high - low for _, high, low in points]
    if len(points) < _FEWEST or len(set(weights)) < 2 or len(set(gaps)) < 2:
        return None
    return float(spearmanr(weights, gaps).statistic), len(points)


def _log_probs(sweep: Sweep) -> list[tuple[Trial, float, float]]:
    """Trials that trained with their chosen and rejected log-probs; none where λ is not swept."""
    if LAMBDA not in sweep.numbers.dimensions:
        return []
    points: list[tuple[Trial, float, float]] = []
    for trial in sweep.numbers.trials:
        high, low = (sweep.kept(trial, f"eval_logps_{name}") for name in ("chosen", "rejected"))
        trained = any(step for step, _ in sweep.curve(trial, "eval_logps_chosen"))
        if trained and high is not None and low is not None:
            points.append((trial, high, low))
    return points


def _valued(sweep: Sweep) -> list[Trial]:
    return [trial for trial in sweep.numbers.trials if trial.value is not None]


def _value(trial: Trial) -> float:
    assert trial.value is not None
    return trial.value


def _shade(scale: ScalarMappable, value: float) -> tuple[float, ...]:
    return tuple(scale.to_rgba(np.array([value]))[0])


def _winner(sweep: Sweep) -> Trial | None:
    return next((trial for trial in sweep.numbers.trials if trial.trial == sweep.numbers.winner), None)


def _numeric(sweep: Sweep) -> dict[str, Dimension]:
    return {key: dimension for key, dimension in sweep.numbers.dimensions.items() if dimension.numeric}


def _scale(sweep: Sweep) -> ScalarMappable:
    values = [_value(trial) for trial in _valued(sweep)]
    low, high = min(values), max(values)
    return ScalarMappable(Normalize(low, high if high > low else low + 1e-9), _COLOURS)


def short(key: str) -> str:
    return {LAMBDA: "λ", LEARNING_RATE: "learning rate"}.get(key, key)


def _ends(dimension: Dimension) -> tuple[str, str]:
    shown = [f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in (dimension.values[0], dimension.values[-1])]
    return shown[0], shown[1]


def _axis(axes: Axes, which: Literal["x", "y"], key: str, dimension: Dimension) -> None:
    axis = getattr(axes, f"{which}axis")
    axis.set_label_text(short(key))
    positive: Sequence[float] = [value for value in dimension.values if value > 0]
    if len(positive) == len(dimension.values) and max(positive) >= 20 * min(positive):
        getattr(axes, f"set_{which}scale")("log")
        decades = np.log10(max(positive) / min(positive))
        if decades < _DECADES:  # powers of ten alone would be one or two labels
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < _DECADES / 2 else (1, 3)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    elif key == LEARNING_RATE:
        axes.ticklabel_format(axis=which, style="sci", scilimits=(-2, 3), useMathText=False)


def _over_steps(axes: Axes, sweep: Sweep) -> None:
    axes.set_xlabel("share of the trial" if sweep.unlike else "step")
    axes.set_xlim(0, 1.02 * (1 if sweep.unlike else sweep.numbers.total_steps))
    axes.xaxis.set_major_locator(MaxNLocator(integer=not sweep.unlike, nbins=7))


def _rungs(sweep: Sweep) -> list[float]:
    return [rung / sweep.numbers.total_steps if sweep.unlike else rung for rung in sweep.numbers.rungs]
