"""docs/images/paper-figure-6.png: what the log odds ratio and the log probability ratio of the same pairs are.

python benchmarks/paper_figure6.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from orpo_ray.paper.figure_ratios import draw_ratios
from orpo_ray.report.figures import GRID, INK

OUT = Path(__file__).resolve().parents[1] / "docs/images/paper-figure-6.png"


def main() -> None:
    figure = Figure(figsize=(8, 3.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    draw_ratios(axes)
    axes.set_title("50,000 pairs of uniform probabilities", loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
