"""docs/images/scaling.png: the fit, the predictions, and the preparation of input; see scaling.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from orpo_ray.report.figures import GRID, INK, NEUTRAL

COLOURS = {1: "#0072b2", 2: "#009e73", 3: "#d55e00"}  # Okabe and Ito (2008), by ZeRO stage
MARKS = {"one process": "o", "ZeRO-2, 2 ranks": "s", "ZeRO-3, 2 ranks": "^"}


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10, 7.4), layout="constrained", dpi=150)
    (fit, opt), (schedule, mistral) = figure.subplots(2, 2)
    _fit(fit, results["fit"]["measured"])
    _schedule(schedule, results["input"])
    _rates(opt, results["predicted"]["steps"], "OPT-1.3B")
    _rates(mistral, results["predicted"]["steps"], "Mistral-7B")
    for axes in (fit, opt, schedule, mistral):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_color(INK)
    figure.savefig(path)


def _fit(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for engine, mark in MARKS.items():
        for held_out in (False, True):
            some = [r for r in rows if r["engine"] == engine and (r["shape"] == "held out") == held_out]
            axes.plot(
                [r["predicted"] for r in some], [r["seconds"] for r in some], mark, markersize=6,
                color="#d55e00" if held_out else "#0072b2", alpha=0.8, mew=0,
                label=f"{engine}{', held-out shape' * held_out}",
            )  # fmt: skip
    ends = [min(r["seconds"] for r in rows) * 0.8, max(r["seconds"] for r in rows) * 1.25]
    axes.plot(ends, ends, color=NEUTRAL, linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="predicted, s a step", ylabel="measured, s a step")
    axes.set_title("Measured on 2 CPU cores, and the fit", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8)


def _rates(axes: Axes, rows: list[dict[str, Any]], family: str) -> None:
    """Pairs a second and GPU, relative to computation alone: from nothing overlapped to all that can."""
    some = [r for r in rows if r["network"] == family and r["data"] == "UltraFeedback"]
    for stage, colour in COLOURS.items():
        for weak, style in ((True, "-"), (False, "--")):
            chosen = [r for r in some if r["stage"] == stage and r["pairs"] == (8 * r["gpus"] if weak else 512)]
            gpus = [r["gpus"] for r in chosen]
            low, high = ([r["compute"] / r[bound] for r in chosen] for bound in ("worst", "best"))
            axes.plot(gpus, low, style, color=colour, label=f"ZeRO-{stage}" if weak else None, marker="o", markersize=4)
            if weak:
                axes.fill_between(gpus, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot([], [], "-", color=NEUTRAL, label="8 pairs a GPU (band: up to all overlapped)")
    axes.plot([], [], "--", color=NEUTRAL, label="512 pairs a step")
    axes.set(
        xscale="log", xlabel="GPUs (predicted: H100, 8 a node)", ylabel="computation's share of a step", ylim=(0, 1.02)
    )
    axes.set_xticks([8, 64, 512], ["8", "64", "512"])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.set_title(f"{family}, UltraFeedback's lengths", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _schedule(axes: Axes, rows: list[dict[str, Any]]) -> None:
    found = [row for row in rows if row["state"] == "found split"]
    pairs = [row["pairs"] for row in found]
    at_512 = [next(s for s in row["steps"] if (s["ranks"], s["batch"]) == (512, 4096)) for row in found]
    plans = [step["plan_seconds"] * 1e3 for step in at_512]
    worst = [step["slowest_plan_seconds"] * 1e3 for step in at_512]
    axes.plot(pairs, plans, "o-", color="#0072b2", label="schedule of a step, 512 ranks x 8 pairs: median")
    axes.plot(pairs, worst, "o:", color="#0072b2", markersize=4, label="slowest of 60")
    axes.axhline(5, color=NEUTRAL, linewidth=1)
    axes.annotate("wanted: below 5 ms", (pairs[0], 5), (0, 3), textcoords="offset points", fontsize=8, color=NEUTRAL)
    axes.set(xscale="log", xlabel="pairs in the data set (measured on one core)", ylabel="ms", ylim=(0, 6))
    memory = axes.twinx()
    memory.spines[["top"]].set_visible(False)
    private = [step["private_bytes"] / 2**20 for step in at_512]
    memory.plot(pairs, private, "s-", color="#d55e00", label="private memory it takes (right)")
    memory.set(ylabel="MiB", ylim=(0, 6))
    lines = [*axes.get_lines()[:2], *memory.get_lines()]
    axes.legend(
        lines,
        [str(line.get_label()) for line in lines],
        frameon=False,
        fontsize=8,
        loc="center right",
        bbox_to_anchor=(1, 0.3),
    )
    axes.set_title("Input of a rank of 512", loc="left", fontsize=11)
