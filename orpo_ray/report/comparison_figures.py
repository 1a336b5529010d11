"""The curves of several training runs: a figure for each metric and each group of runs that it is the same of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from orpo_ray.report import comparison as runs_alike
from orpo_ray.report.comparison import Aspect, Compared, batch_sizes, grouped, parted
from orpo_ray.report.evaluation_figures import MODELS, drawn
from orpo_ray.report.figures import MAX_POINTS, NEUTRAL, SIZE, Percent, curve
from orpo_ray.report.rollout_frontier import sound
from orpo_ray.report.runs import Series

STYLES = ("solid", "dashed", "dotted")
"""Of the first eight runs' lines, of the next eight's, and so on: CSS and matplotlib call them alike."""
_BY_OBJECTIVE = (runs_alike.objective,)
_PER_TOKEN = (runs_alike.tokens,)


@dataclass(frozen=True)
class Metric:
    """A metric of lines of training, and with `eval_` before it of evaluations."""

    key: str
    title: str
    axis: str
    alike: tuple[Aspect, ...] = ()
    """What must be alike beside the data for two runs' curves to share axes."""
    held_out: bool = True
    """Whether evaluations have it."""
    trained: bool = True
    """Whether lines of training have it."""
    even: float | None = None
    """A value that says nothing, which gets a line."""
    share: bool = False
    of_round: bool = False
    """Whether training finds it when a round is drawn, so that it is of the policy of the step before."""


METRICS = (
    Metric("reward", "Reward", "reward", (runs_alike.rewards,), trained=False),
    Metric("reward", "Reward as learned from", "reward", (runs_alike.learned_rewards,), held_out=False, of_round=True),
    Metric("logps_chosen", "Chosen log-prob", "mean log-prob per token", _PER_TOKEN),
    Metric("logps_rejected", "Rejected log-prob", "mean log-prob per token", _PER_TOKEN),
    Metric("log_odds_ratio", "Log odds ratio", "log odds ratio", _PER_TOKEN, even=0),
    Metric("reward_accuracy", "Reward accuracy", "reward accuracy", (runs_alike.ranking,), even=0.5, share=True),
    Metric("reward_margin", "Reward margin", "reward margin", (*_BY_OBJECTIVE, *_PER_TOKEN), even=0),
    Metric("nll", "NLL", "nats per token", (runs_alike.nll_tokens, *_PER_TOKEN)),
    Metric("loss", "Loss", "loss", (*_BY_OBJECTIVE, *_PER_TOKEN)),
    Metric("win_rate", "Win-rate", "win-rate", (runs_alike.comparison_run,), trained=False, even=0.5, share=True),
    Metric("calibration_error", "Calibration error", "expected calibration error", trained=False),
    Metric("kl", "KL to the reference", "nats to the reference", (runs_alike.reference, *_PER_TOKEN), of_round=True),
    Metric("entropy", "Entropy", "nats a token", _PER_TOKEN, of_round=True),
    Metric("response_tokens", "Response length", "tokens a response", _PER_TOKEN, of_round=True),
    Metric("share_cut", "Responses cut", "share cut", _PER_TOKEN, of_round=True, share=True),
)  # fmt: skip
OF_THE_LOOP = (
    Metric("lr", "Learning rate", "learning rate", held_out=False),
    Metric("pairs_per_second", "Throughput", "a second", (runs_alike.unit,), held_out=False),
)


@dataclass(frozen=True)
class Across:
    """What the x axis counts: steps, or pairs where steps are not of equal size."""

    word: str
    sizes: dict[str, int]
    """By label, how many of them a step is."""

    @classmethod
    def of(cls, runs: Sequence[Compared]) -> Across:
        sizes = batch_sizes(runs)
        if sizes is None or len(set(sizes)) == 1:
            return cls("step", {each.label: 1 for each in runs})
        asked = {each.run.rolls_out for each in runs}
        word = "pairs seen" if asked == {False} else "prompts seen" if asked == {True} else "pairs or prompts seen"
        return cls(word, {each.label: size for each, size in zip(runs, sizes, strict=True)})


class Lines:
    """How each run is drawn on all figures of a page."""

    def __init__(self, runs: Sequence[Compared]) -> None:
        self.places = {each.label: place for place, each in enumerate(runs)}
        self.across = Across.of(runs)

    def colour(self, run: Compared) -> str:
        return MODELS[self.places[run.label] % len(MODELS)]

    def style(self, run: Compared) -> str:
        return STYLES[self.places[run.label] // len(MODELS)]

    def series(self, run: Compared, key: str, *, of_round: bool = False) -> Series:
        """Where on the x axis, and the values."""
        steps, values = sound(run.run.series(key))
        steps = np.maximum(steps - 1, 0) if of_round else steps
        return steps * self.across.sizes[run.label], values


@dataclass(frozen=True)
class Curves:
    """One figure of a group of runs, and why others that have the metric are not on it."""

    metric: Metric
    key: str
    """Of the lines of `metrics.jsonl`."""
    group: list[Compared]
    apart: dict[str, list[str]]
    """By reason, the labels of the runs that it keeps away."""
    lines: Lines

    @property
    def title(self) -> str:
        return self.metric.title

    @property
    def runs(self) -> list[str]:
        return [run.label for run in self.group]

    @property
    def alone(self) -> bool:
        """Whether no other run that has the metric may share axes with this one."""
        return len(self.group) == 1

    @property
    def caption(self) -> str:
        return " ".join(f"Without {', '.join(labels)}: {reason}." for reason, labels in self.apart.items())

    @property
    def figure(self) -> Markup:
        return _figure(self.metric, self.group, self.lines, self.key)


def held_out_curves(runs: Sequence[Compared], lines: Lines) -> list[Curves]:
    """What evaluations found."""
    metrics = [metric for metric in METRICS if metric.held_out]
    return [
        each for metric in metrics for each in _curves(metric, runs, lines, f"eval_{metric.key}", runs_alike.held_out)
    ]


def training_curves(runs: Sequence[Compared], lines: Lines) -> list[Curves]:
    """What was found on what was trained on, at each step."""
    metrics = [metric for metric in METRICS if metric.trained]
    return [each for metric in metrics for each in _curves(metric, runs, lines, metric.key, runs_alike.trained_on)]


def loop_curves(runs: Sequence[Compared], lines: Lines) -> list[Curves]:
    """What no data decide."""
    return [each for metric in OF_THE_LOOP for each in _curves(metric, runs, lines, metric.key)]


def _curves(metric: Metric, runs: Sequence[Compared], lines: Lines, key: str, *data: Aspect) -> Iterator[Curves]:
    """A figure for each group of the runs that have it."""
    having = [run for run in runs if np.isfinite(lines.series(run, key)[1]).any()]
    aspects = (*data, *metric.alike)
    groups = grouped(having, aspects)
    for group in groups:
        apart: dict[str, list[str]] = {}
        for other in groups:
            if other is not group:
                reasons = (parted(*both, aspects) for both in product(group, other))
                apart.setdefault(next(filter(None, reasons)), []).extend(run.label for run in other)
        yield Curves(metric, key, group, apart, lines)


def _figure(metric: Metric, group: Sequence[Compared], lines: Lines, key: str) -> Markup:
    def draw(axes: Axes) -> None:
        if metric.even is not None:
            axes.axhline(metric.even, color=NEUTRAL, linewidth=0.8)
        for run in group:
            _line(axes, run, lines, key, of_round=metric.of_round and not key.startswith("eval_"))
        if metric.share:
            axes.yaxis.set_major_formatter(Percent())
        elif metric.key == "lr":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=False)
        if metric in OF_THE_LOOP:
            axes.set_ylim(bottom=0)
        unit = runs_alike.unit_of(group[0].run) if metric.key == "pairs_per_second" else ""
        axes.set(xlabel=lines.across.word, ylabel=f"{unit} {metric.axis}".strip())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if lines.across.word != "step":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    where = "on held-out data, " if key.startswith("eval_") else ""
    return drawn(
        draw, f"{metric.title} of {', '.join(run.label for run in group)}, {where}over {lines.across.word}s", SIZE
    )


def _line(axes: Axes, run: Compared, lines: Lines, key: str, *, of_round: bool) -> None:
    """Evaluations and few points are marked; what is noisy is faint, with its running mean."""
    colour, style = lines.colour(run), lines.style(run)
    steps, values = lines.series(run, key, of_round=of_round)
    if key.startswith("eval_") or len(steps) <= MAX_POINTS // 10:
        order = np.argsort(steps, kind="stable")  # win-rates come in when they are ready
        steps, values = steps[order], values[order]
        known = np.isfinite(values)
        axes.plot(steps[known], values[known], color=colour, linestyle=style, linewidth=1.2, marker="o", markersize=3.5)
        if key == "eval_win_rate":
            low, high = (lines.series(run, f"{key}_{end}")[1][order] for end in ("low", "high"))
            axes.vlines(steps[known], low[known], high[known], color=colour, linewidth=1)
        return
    curve(axes, (steps, values), colour, "")
    axes.lines[-1].set_linestyle(style)  # of the mean, which is drawn last


def summary_of_groups(curves: Sequence[Curves]) -> dict[str, list[str]]:
    """By reason, the titles of the metrics of which curves are drawn apart for it."""
    found: dict[str, list[str]] = {}
    for each, other in combinations(curves, 2):
        for reason, labels in each.apart.items():
            if (
                each.title == other.title
                and set(labels) & set(other.runs)
                and each.title not in found.setdefault(reason, [])
            ):
                found[reason].append(each.title)
    return found
