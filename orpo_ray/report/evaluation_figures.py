"""The figures of an evaluation: ratings, win-rates, distributions of rewards and of lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orpo_ray.report.densities import bins, density
from orpo_ray.report.evaluation_folder import Floats, Pair, Rating
from orpo_ray.report.figures import CHOSEN, INK, NEUTRAL, REJECTED, SIZE, VARIABLES, Percent, legend, page_svg, svg

# Okabe and Ito's colours without the blue and vermilion of chosen and rejected, with two of Paul Tol's: any two differ
# for readers with deuteranopia and protanopia too. `drawn` makes variables of them; a last digit is off by one where
# `figures.svg` would take the colour for a run's.
MODELS = ("#009e74", "#e69f01", "#332288", "#882255", "#56b4e9", "#7a5c00", "#cc79a8", "#000001")
CARD = "#fffffe"
"""What figures stand on: it becomes a variable of the style sheet, and must not be the white of anything else."""
ALL_VARIABLES = {**VARIABLES, **{colour: f"var(--model-{i})" for i, colour in enumerate(MODELS)}, CARD: "var(--card)"}
"""What becomes of the colours of a page's figures, those of models included."""
DATA_COLOURS = {"chosen": CHOSEN, "rejected": REJECTED}
FEW_VALUES = 12
"""Rewards that are whole numbers, this many at most, are counts: a smooth density would invent values between."""
FILLED = 4
"""Histograms of more models than this would hide each other: their densities alone are drawn."""
_ROW_INCHES = 0.6
"""Of a forest plot: three lines."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each model, by its place; the ninth takes the first again."""
    return {label: MODELS[i % len(MODELS)] for i, label in enumerate(labels)}


def ratings(rated: Sequence[Rating], colour: Mapping[str, str], reward_model: str) -> Markup:
    """Bradley-Terry ratings with their 95% intervals, best first."""

    def draw(axes: Axes) -> None:
        _even(axes, 0, len(rated))
        for y, entry in enumerate(rated):
            _estimate(axes, y, entry.rating, entry.ci95, colour.get(entry.model, INK))
            _name(axes, y, entry.model, f"{entry.rating:+.0f}".replace("-", "−"))
        axes.set_xlabel("rating (Elo scale, mean 0), 95% interval")
        _rows(axes, len(rated))

    return drawn(draw, f"Ratings of the models by {reward_model}", (SIZE[0], 0.9 + 0.42 * len(rated)))


def forest(pairs: Sequence[Pair]) -> Markup:
    """The win-rate of each pair against an even 50% and beside it the length-controlled one, with 95% intervals."""
    title = f"Win-rates by {pairs[0].reward_model}"
    size = (SIZE[0], 0.75 + _ROW_INCHES * len(pairs))
    return page_svg(lambda figure: draw_forest(figure, pairs), title, size, ALL_VARIABLES)


def draw_forest(figure: Figure, pairs: Sequence[Pair]) -> None:
    """A row for each pair: its name, below it what each panel says in numbers, below that the same drawn. Without any
    win-rate at equal lengths there is one panel."""
    even = [(p.length_controlled, p.length_controlled_ci95, p.length_controlled_unknown) for p in pairs]
    panels: dict[str, list[tuple[float | None, tuple[float, float] | None, str | None]]] = {
        "win-rate, ties half": [(p.win_rate, p.ci95, None) for p in pairs]
    }
    if any(value is not None for value, _, _ in even):
        panels["length-controlled"] = even
    drawn_in = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, estimates) in zip(drawn_in, panels.items(), strict=True):
        # Marks in the rows and not a line through all, which would cross what is written.
        rows = np.arange(len(pairs))
        axes.vlines(np.full(len(pairs), 0.5), rows + 0.04, rows + 0.4, NEUTRAL, linewidth=1.2)
        for y, (value, interval, unknown) in enumerate(estimates):
            said = ("cannot be told" if unknown else "–") if value is None else f"{value:.1%}"
            if value is not None:
                axes.plot([value], [y + 0.22], marker="o", markersize=6, color=INK, linestyle="")
            if value is not None and interval is not None:
                axes.plot(interval, [y + 0.22] * 2, color=INK, linewidth=2.2)
                said += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
            _write(axes, y - 0.1, said)
        _rows(axes, len(pairs), nbins=4)
        axes.set_ylim(len(pairs) - 0.5, -0.55)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(Percent())
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("95% intervals")
    for y, pair in enumerate(pairs):
        _write(drawn_in[0], y - 0.36, short(f"{pair.model} over {pair.against}", 56))


def _write(axes: Axes, y: float, text: str) -> None:
    """From the left end of a row on; a long name runs over the next panel, where the row has nothing at this height."""
    written = axes.annotate(
        text, (0, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, annotation_clip=False
    )
    written.set_in_layout(False)


def rewards(models: Mapping[str, Floats], data: Mapping[str, Floats], reward_model: str) -> Markup | None:
    """The paper's Figures 5 and 11: how each model's rewards are distributed, with the data's own responses.

    `models` and `data` map a label to finite rewards `(responses,)`. Few whole numbers are drawn as bars, all else
    as histogram and density. None where there is nothing to draw.
    """
    shown = {label: values for label, values in models.items() if values.size}
    own = {label: values for label, values in data.items() if values.size}
    if not shown and not own:
        return None
    colour = colours(list(models))
    every = np.concatenate([*shown.values(), *own.values()])
    levels = np.unique(every)

    def draw(axes: Axes) -> None:
        axes.set_xlabel("reward")
        if levels.size <= FEW_VALUES and bool((levels == np.round(levels)).all()):
            _bars(axes, shown, own, levels, colour)
        else:
            _densities(axes, shown, own, every, colour)
        legend(axes)

    return drawn(draw, f"Distribution of rewards by {reward_model}", SIZE)


def lengths(models: Mapping[str, Floats], max_tokens: int, turns: int) -> Markup | None:
    """Shares of responses by their length in tokens; `models` maps a label to finite lengths `(responses,)`. With
    several `turns` each is that of a conversation's answers together, of which `max_tokens` cuts none."""
    shown = {label: values for label, values in models.items() if values.size}
    if not shown:
        return None
    colour = colours(list(models))
    longest = max(float(values.max()) for values in shown.values())
    width = max(1, int(np.ceil((longest + 1) / 30)))
    edges = np.arange(0, longest + width + 1, width) - 0.5
    centres = (edges[:-1] + edges[1:]) / 2

    def draw(axes: Axes) -> None:
        for label, values in shown.items():
            shares = np.histogram(values, edges)[0] / values.size
            axes.plot(centres, shares, color=colour[label], label=short(label))
            if len(shown) <= FILLED:
                axes.fill_between(centres, shares, color=colour[label], alpha=0.14, linewidth=0)
        if longest >= max_tokens and turns == 1:
            axes.axvline(max_tokens, color=NEUTRAL, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.annotate(
                "cut here", (max_tokens, 1), (-3, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", va="top", fontsize=8,
            )  # fmt: skip
        axes.yaxis.set_major_formatter(Percent())
        of, all_of = ("a response", "responses") if turns == 1 else ("a conversation's answers", "conversations")
        axes.set(xlabel=f"tokens in {of}", ylabel=f"share of {all_of}")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        legend(axes)

    return drawn(draw, "Distribution of response lengths, a line for each model", SIZE)


def _bars(
    axes: Axes, models: Mapping[str, Floats], data: Mapping[str, Floats], levels: Floats, colour: Mapping[str, str]
) -> None:
    values = np.arange(levels[0], levels[-1] + 1)
    groups = [*models.items(), *data.items()]
    width = 0.84 / len(groups)
    for i, (label, rewards) in enumerate(groups):
        shares = (rewards[:, None] == values).mean(axis=0)
        x = values + (i - (len(groups) - 1) / 2) * width
        style: dict[str, Any] = {"color": colour.get(label), "label": short(label)}
        if i >= len(models):
            style = {"fill": False, "edgecolor": DATA_COLOURS[label], "linewidth": 1.4, "label": f"{label} (data)"}
        axes.bar(x, shares, width * 0.84, **style)
    axes.yaxis.set_major_formatter(Percent())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("share of responses")


def _densities(
    axes: Axes, models: dict[str, Floats], data: dict[str, Floats], every: Floats, colour: Mapping[str, str]
) -> None:
    most = max(values.size for values in (*models.values(), *data.values()))
    edges = np.histogram_bin_edges(every, bins(most)).tolist()
    margin = 0.05 * float(np.ptp(every))
    x = np.linspace(every.min() - margin, every.max() + margin, 240)
    for label, values in (models | data).items():
        own = label in data
        drawn = DATA_COLOURS[label] if own else colour[label]
        curve = density(values, x)
        if np.isnan(curve).any() or (not own and len(models) <= FILLED):
            axes.hist(values, edges, density=True, color=drawn, alpha=0.22)
        axes.plot(
            x, curve, color=drawn, linestyle=(0, (4, 2)) if own else "-",
            label=f"{label} (data)" if own else short(label),
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel("density")


def _even(axes: Axes, x: float, rows: int) -> None:
    """Where neither side is ahead: a mark in each row and not a line through all, which would cross their names."""
    axes.vlines([x] * rows, [y - 0.22 for y in range(rows)], [y + 0.36 for y in range(rows)], NEUTRAL, linewidth=1.2)


def _estimate(axes: Axes, y: int, value: float, interval: tuple[float, float], colour: str) -> None:
    axes.plot(interval, [y, y], color=colour, linewidth=2.4)
    axes.plot([value], [y], marker="o", markersize=7, color=colour, linestyle="")


def _name(axes: Axes, y: int, label: str, value: str) -> None:
    """What a row is, above it and inside the axes, so that a long name takes no width from the plot."""
    for x, text, side in ((0.0, short(label, 44), "left"), (1.0, value, "right")):
        axes.annotate(
            text, (x, y), (0, 8), xycoords=("axes fraction", "data"), textcoords="offset points", ha=side,
            fontsize=9, bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _rows(axes: Axes, count: int, nbins: int = 6) -> None:
    axes.set_ylim(count - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")


def short(label: str, longest: int = 24) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def drawn(draw: Callable[[Axes], None], title: str, size: tuple[float, float]) -> Markup:
    """`figures.svg` with the further colours of models as variables too."""
    return svg(draw, title, size, ALL_VARIABLES)
