"""The demo's two pictures, which README shows, and the numbers that they are drawn from.

python -m orpo_ray.report.demo_pictures docs/images/demo.json    # draws them anew beside it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orpo_ray.atomic import new_file
from orpo_ray.parsing import read_object
from orpo_ray.report.curves import curves_png
from orpo_ray.report.figures import CHOSEN, INK, NEUTRAL, Percent, binned, legend, picture
from orpo_ray.report.runs import Run, read_run
from orpo_ray.storage.run_folder import write_atomically

NUMBERS, CURVES, WIN_RATES = "demo.json", "demo.png", "winrate.png"
_SERIES = tuple(f"{when}logps_{which}" for when in ("", "eval_") for which in ("chosen", "rejected"))
_JUDGES = {"truth": ("the truth", INK, "o"), "reward": ("the reward model", CHOSEN, "D")}
_PLACES = 4  # of what is written down


def demo_numbers(runs: Mapping[str, Path], found: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What the pictures show, as JSON: of each run folder the log-probs of chosen and rejected, [steps, values]; of
    `found`, a `winrates.json`, ORPO's win-rates with their intervals. `settings`: what the demo ran with."""
    curves = {
        label: {
            key: [steps.tolist(), np.round(values, _PLACES).tolist()]
            for key, (steps, values) in ((key, binned(run.series(key))) for key in _SERIES)
            if len(steps)
        }
        for label, run in ((label, read_run(folder)) for label, folder in runs.items())
    }
    win_rates = [
        {
            "against": pair["against"], "judge": pair["reward_model"], "win_rate": round(pair["win_rate"], _PLACES),
            "ci95": [round(end, _PLACES) for end in pair["ci95"]],
        }
        for pair in found["pairs"]
        if pair["model"] == "orpo"
    ]  # fmt: skip
    shown = {"prompts": found["prompts"], "rounds": found["rounds"]}
    return {**shown, "curves": curves, "win_rates": win_rates, "settings": settings}


def draw_demo(numbers: dict[str, Any], folder: Path) -> None:
    """Write both pictures into `folder`; the same numbers give the same bytes. Raises `UserError` where it cannot."""
    curves_png(folder / CURVES, {label: _run(series) for label, series in numbers["curves"].items()})
    against = list(dict.fromkeys(each["against"] for each in numbers["win_rates"]))

    def paint(figure: Figure) -> None:
        _forest(figure.subplots(), numbers["win_rates"], against)

    with new_file(folder / WIN_RATES) as new:
        new.write_bytes(picture(paint, (8.4, 0.9 + 0.55 * len(against)), "png"))


def write_demo(numbers: dict[str, Any], folder: Path) -> None:
    """Numbers and pictures."""
    write_atomically(folder / NUMBERS, json.dumps(numbers) + "\n")
    draw_demo(numbers, folder)


def _run(series: dict[str, Any]) -> Run:
    """A run of these metrics alone."""
    lines = [
        {"step": step, key: value} for key, columns in series.items() for step, value in zip(*columns, strict=True)
    ]
    return Run(Path(), {}, lines, None, [])


def _forest(axes: Axes, pairs: list[dict[str, Any]], against: list[str]) -> None:
    axes.axvline(0.5, color=NEUTRAL, linewidth=0.8)
    for shift, (judge, (label, colour, marker)) in zip((-0.13, 0.13), _JUDGES.items(), strict=True):
        for row in (pair for pair in pairs if pair["judge"] == judge):
            y = against.index(row["against"]) + shift
            first = row["against"] == against[0]
            axes.plot(row["ci95"], [y, y], color=colour, linewidth=1.6)
            axes.plot(
                [row["win_rate"]], [y], color=colour, marker=marker, markersize=5, linestyle="",
                label=f"by {label}, 95% interval" if first else None,
            )  # fmt: skip
            axes.annotate(
                f"{row['win_rate']:.1%}", (row["ci95"][1], y), (5, 0), textcoords="offset points", va="center",
                fontsize=8, color=colour,
            )  # fmt: skip
    axes.set_yticks(range(len(against)), [f"ORPO over {name.upper() if name != 'base' else name}" for name in against])
    axes.set_ylim(len(against) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(Percent())
    axes.set_xlabel("win-rate, ties half")
    axes.margins(x=0.08)
    axes.grid(False)
    legend(axes)


if __name__ == "__main__":
    draw_demo(read_object(Path(sys.argv[1])), Path(sys.argv[1]).parent)
