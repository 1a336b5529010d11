"""The figures: one subject each, drawn by matplotlib, as inline SVG that takes the page's fonts and colours."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import Formatter, LogFormatter, MaxNLocator
from numpy.typing import NDArray

from orpo_ray.report.runs import Run, Series

# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart. Chosen is blue and rejected is
# vermilion in every figure.
INK, GRID = "#20262e", "#d9dee5"
CHOSEN, REJECTED = "#0072b2", "#d55e00"
NEUTRAL = "#59636f"
# In a page each becomes a variable of the style sheet, so that dark mode can lighten it.
VARIABLES = {
    INK: "var(--ink)", GRID: "var(--grid)", CHOSEN: "var(--chosen)", REJECTED: "var(--rejected)",
    NEUTRAL: "var(--neutral)",
}  # fmt: skip

Drawn = tuple[str, Markup | None, str]
"""A figure: its title, the figure if there is any, its caption."""
SIZE = (4.6, 3.0)
"""Inches. Small on purpose: a page scales a figure to its column, and a phone's is about this wide."""
MAX_POINTS = 400
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "orpo_ray", "font.size": 9, "text.color": INK,
    "axes.edgecolor": GRID, "axes.labelcolor": INK, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "axes.unicode_minus": True, "grid.color": GRID, "grid.linewidth": 0.6, "xtick.color": GRID,
    "ytick.color": GRID, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.frameon": False,
    "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip


def loss(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        curve(axes, run.series("loss"), NEUTRAL, "training")
        points(axes, run.series("eval_loss"), INK, "evaluation")
        step = run.best_step
        best = run.value_at("eval_loss", step)
        if step is not None and best is not None:
            axes.plot([step], [best], marker="*", markersize=11, color=INK, linestyle="", label=_best(run))
        axes.set_ylabel("loss")

    return over_steps(draw, run, ("loss", "eval_loss"), "Training and evaluation loss over steps")


def _best(run: Run) -> str:
    return "best" if run.keep_by == "eval_loss" else f"best by {run.keep_by}"


def log_probs(run: Run, limits: tuple[float, float] | None = None) -> Markup | None:
    """Mean log-prob per token of chosen and rejected responses: the paper's Figures 3 and 7."""

    def draw(axes: Axes) -> None:
        draw_log_probs(axes, run)
        if limits:
            axes.set_ylim(limits)

    keys = ("logps_chosen", "eval_logps_chosen", "logps_rejected", "eval_logps_rejected")
    return over_steps(draw, run, keys, "Mean log-prob of chosen and rejected responses over steps")


def draw_log_probs(axes: Axes, run: Run) -> None:
    for name, colour, marker in (("chosen", CHOSEN, "o"), ("rejected", REJECTED, "s")):
        curve(axes, run.series(f"logps_{name}"), colour, name)
        points(axes, run.series(f"eval_logps_{name}"), colour, f"{name}, evaluation", marker)
    axes.set_ylabel("mean log-prob per token")


def log_prob_limits(runs: Sequence[Run]) -> tuple[float, float] | None:
    """The y axis that holds every run's log-prob curves, with a margin."""
    names = ("logps_chosen", "logps_rejected", "eval_logps_chosen", "eval_logps_rejected")
    parts = [smoothed(run.series(name))[1] for run in runs for name in names]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    margin = 0.06 * max(float(np.ptp(values)), 0.05)
    return float(values.min()) - margin, float(values.max()) + margin


def log_odds_ratio(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        curve(axes, run.series("log_odds_ratio"), NEUTRAL, "training")
        points(axes, run.series("eval_log_odds_ratio"), INK, "evaluation")
        axes.set_ylabel("log odds ratio")

    keys = ("log_odds_ratio", "eval_log_odds_ratio")
    return over_steps(draw, run, keys, "Log odds ratio of chosen over rejected responses over steps")


def reward_accuracy(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(0.5, color=NEUTRAL, linewidth=0.8)
        curve(axes, run.series("reward_accuracy"), NEUTRAL, "training")
        points(axes, run.series("eval_reward_accuracy"), INK, "evaluation")
        axes.yaxis.set_major_formatter(Percent())
        axes.set_ylabel("reward accuracy")

    keys = ("reward_accuracy", "eval_reward_accuracy")
    return over_steps(draw, run, keys, "Share of pairs whose chosen response is preferred, over steps")


def rewards(run: Run) -> Markup | None:
    """What a reward model gives chosen and rejected responses on average."""

    def draw(axes: Axes) -> None:
        for name, colour, marker in (("chosen", CHOSEN, "o"), ("rejected", REJECTED, "s")):
            curve(axes, run.series(f"rewards_{name}"), colour, name)
            points(axes, run.series(f"eval_rewards_{name}"), colour, f"{name}, evaluation", marker)
        axes.set_ylabel("mean reward")

    keys = ("rewards_chosen", "eval_rewards_chosen", "rewards_rejected", "eval_rewards_rejected")
    return over_steps(draw, run, keys, "Mean rewards of chosen and rejected responses over steps")


def reward_margin(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        curve(axes, run.series("reward_margin"), NEUTRAL, "training")
        points(axes, run.series("eval_reward_margin"), INK, "evaluation")
        axes.set_ylabel("reward margin")

    keys = ("reward_margin", "eval_reward_margin")
    return over_steps(draw, run, keys, "Mean reward of chosen less that of rejected responses over steps")


def learning_rate(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.plot(*binned(run.series("lr")), color=NEUTRAL)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=False)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("learning rate")

    return over_steps(draw, run, ("lr",), "Learning rate over steps")


def throughput(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        curve(axes, run.series("pairs_per_second"), NEUTRAL, "")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("pairs per second")

    return over_steps(draw, run, ("pairs_per_second",), "Pairs per second over steps")


def win_rate(run: Run) -> Markup | None:
    """What checkpoints were worth while training went on (`eval.win_rate`), with 95 % intervals."""

    def draw(axes: Axes) -> None:
        axes.axhline(0.5, color=NEUTRAL, linewidth=0.8)
        (steps, rates), (_, low), (_, high) = (run.series(f"eval_win_rate{end}") for end in ("", "_low", "_high"))
        found = np.isfinite(rates)
        order = np.argsort(steps[found])  # they come in when they are ready
        axes.vlines(steps[found], low, high, color=INK, linewidth=1.2)
        axes.plot(steps[found][order], rates[found][order], color=INK, marker="o", markersize=4, linewidth=1)
        axes.yaxis.set_major_formatter(Percent())
        axes.set_ylabel("win-rate")

    return over_steps(draw, run, ("eval_win_rate",), "Win-rate of checkpoints over steps")


def panels(runs: dict[str, Run]) -> Figure:
    """The log-prob curves of several runs in adjacent panels with one y axis, as a picture on white."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * len(runs), 3.4), layout="constrained", facecolor="white")
        rows = figure.subplots(1, len(runs), sharey=True, squeeze=False)
        for axes, (label, run) in zip(rows[0], runs.items(), strict=True):
            draw_log_probs(axes, run)
            axes.set_title(label, loc="left", fontweight="bold")
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.label_outer()
            for spine in ("bottom", "left"):
                axes.spines[spine].set_visible(True)
        limits = log_prob_limits(list(runs.values()))
        if limits:
            rows[0][0].set_ylim(limits)
        handles = {text: h for axes in rows[0] for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        names = sorted(handles)
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=len(names))
        _show_dollars(figure)
    return figure


def over_steps(draw: Callable[[Axes], None], run: Run, keys: Sequence[str], title: str) -> Markup | None:
    """A figure over steps, or None where the run wrote none of the metrics in `keys`."""
    if not any(np.isfinite(run.series(key)[1]).any() for key in keys):
        return None

    def draw_all(axes: Axes) -> None:
        draw(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
        legend(axes)

    return svg(draw_all, title, SIZE)


def curve(axes: Axes, series: Series, colour: str, label: str) -> None:
    """A noisy training metric: its values faint, a running mean over them."""
    steps, values = binned(series)
    if not np.isfinite(values).any():
        return
    width = max(1, len(values) // 25)
    if width > 1:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, _running_mean(values, width), color=colour, label=label or None)


def points(axes: Axes, series: Series, colour: str, label: str, marker: str = "o") -> None:
    steps, values = series
    if np.isfinite(values).any():
        axes.plot(
            steps, values, color=colour, linewidth=0.9, linestyle=(0, (3, 2)), label=label,
            marker=marker, markersize=4.5, markerfacecolor="none",
        )  # fmt: skip


def smoothed(series: Series) -> Series:
    """What `curve` draws strongly, which is what the y axis must hold: a running mean over a noisy metric."""
    steps, values = binned(series)
    return steps, _running_mean(values, max(1, len(values) // 25))


def binned(series: Series) -> Series:
    """At most `MAX_POINTS` points: means over equal runs of steps, so that a long run keeps a small page."""
    steps, values = series
    if len(steps) <= MAX_POINTS:
        return series
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return np.array([steps[part[-1]] for part in parts]), np.array([_mean(values[part]) for part in parts])


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean over a window of `width` centred on each value, cut at the ends and blind to NaN."""
    half = width // 2
    return np.array([_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


class Percent(Formatter):  # type: ignore[misc]
    """Ticks of shares as percentages, all with the decimals that the finest needs."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        shares = 100 * np.asarray(values)
        digits = next((n for n in range(4) if np.allclose(shares, shares.round(n), rtol=0, atol=1e-6)), 4)
        return [f"{share:.{digits}f}%".replace("-", "−") for share in shares + 0.0]


def legend(axes: Axes) -> None:
    """The legend above a figure, where it has one."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if any(len(label) > 12 for label in labels) else 3  # as many as a phone is wide enough for
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2,
            columnspacing=1.4, handlelength=2.2,
        )  # fmt: skip


def svg(
    draw: Callable[[Axes], None], title: str, size: tuple[float, float], variables: Mapping[str, str] = VARIABLES
) -> Markup:
    """`page_svg` of a figure of one pair of axes."""
    return page_svg(lambda figure: draw(figure.subplots()), title, size, variables)


def page_svg(
    paint: Callable[[Figure], None], title: str, size: tuple[float, float], variables: Mapping[str, str] = VARIABLES
) -> Markup:
    """Draw into a fresh figure and return it as an `<svg>` element for a page, whatever texts are in it.

    `variables`: what becomes of its colours.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        _show_dollars(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # What is left of ids names shapes to reuse; equal shapes of two figures must not share one on a page.
    own = f"{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r"<[^>]+>", lambda tag: _for_a_page(tag[0], own, variables), text)  # a label is not rewritten
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def picture(paint: Callable[[Figure], None], size: tuple[float, float], kind: Literal["svg", "png"]) -> bytes:
    """A file that stands alone, on white, the same bytes at every drawing. An SVG's letters are outlines, so that it
    looks alike where other fonts are installed."""
    with matplotlib.rc_context({**_STYLE, "svg.fonttype": "path"}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        paint(figure)
        _show_dollars(figure)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=180, metadata=metadata)
    return buffer.getvalue()


def _for_a_page(tag: str, own: str, variables: Mapping[str, str]) -> str:
    """A tag of matplotlib's, its ids and references begun with `own`."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", tag)
    tag = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", tag)  # implied inside HTML
    if tag.startswith("<svg"):
        tag = re.sub(r'\s+(width|height)="[^"]*"', "", tag)
    for colour, variable in variables.items():
        tag = tag.replace(colour, variable)
    return tag


def _show_dollars(figure: Figure) -> None:
    """A `$` in a name begins no formula, which might have no end. The powers of ten on a log axis are formulas."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            for label in axis.get_ticklabels(which="both"):
                label.set_parse_math(True)
