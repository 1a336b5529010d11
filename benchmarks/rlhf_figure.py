"""docs/images/rlhf-speed.png: seconds of a round of rollouts and peak memory, beside TRL's; see rlhf.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orpo_ray.report.figures import GRID, INK

COLOURS = {"ours": "#0072b2", "theirs": "#d55e00"}  # Okabe and Ito (2008)
NAMES = {"ours": "orpo_ray", "theirs": "TRL"}


def draw(results: dict[str, Any], path: Path) -> None:
    rows = [(kind, side, found["medians"][side]) for kind, found in results["kinds"].items() for side in NAMES
            if side in found["medians"]]  # fmt: skip
    figure = Figure(figsize=(10, 0.8 + 0.45 * len(rows)), layout="constrained", dpi=150)
    seconds, memory = figure.subplots(1, 2, sharey=True)
    places = list(range(len(rows)))
    colours = [COLOURS[side] for _, side, _ in rows]
    generation = [medians["generation_seconds"] for _, _, medians in rows]
    others = [medians["others_seconds"] for _, _, medians in rows]
    seconds.barh(places, generation, color=colours, alpha=0.5)
    seconds.barh(places, others, left=generation, color=colours)
    for place, all_seconds in zip(places, map(sum, zip(generation, others, strict=True)), strict=True):
        seconds.annotate(f"{all_seconds:.1f} s", (all_seconds, place), (3, 0), textcoords="offset points", va="center")
    rollouts = sorted({found["rollouts"] for found in results["kinds"].values()})
    seconds.set_title(
        f"Seconds of {' and '.join(map(str, rollouts))} rollouts: generation (pale), all else", loc="left", fontsize=11
    )
    gib = [medians["peak_bytes"] / 2**30 for _, _, medians in rows]
    memory.barh(places, gib, color=colours)
    for place, size in zip(places, gib, strict=True):
        memory.annotate(f"{size:.1f} GiB", (size, place), (3, 0), textcoords="offset points", va="center")
    memory.set_title("Peak memory of all processes", loc="left", fontsize=11)
    seconds.set_yticks(places, [f"{kind.upper()}, {NAMES[side]}" for kind, side, _ in rows])
    seconds.invert_yaxis()
    for axes in (seconds, memory):
        _quiet(axes)
    figure.savefig(path)


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.title.set_color(INK)
    axes.margins(x=0.15)
