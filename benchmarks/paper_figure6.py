"""docs/images/paper-figure-6.png: what the log odds ratio and the log probability ratio of the same pairs are.

python benchmarks/paper_figure6.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from orpo_ray.objectives.sampled_ratios import sampled_ratios
from orpo_ray.report.figures import GRID, INK

OUT = Path(__file__).resolve().parents[1] / "docs/images/paper-figure-6.png"


def main() -> None:
    figure = Figure(figsize=(8, 3.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    bins = np.linspace(-12, 12, 121).tolist()
    for beta, colour in ((1.0, "#0072b2"), (0.1, "#56b4e9")):
        name = f"log probability ratio, β = {beta:g}"
        axes.hist(
            sampled_ratios(beta=beta).probability,
            bins,
            color=colour,
            histtype="step",
            linewidth=1.6,
            density=True,
            label=name,
        )
    odds = sampled_ratios().odds
    axes.hist(odds, bins, color="#d55e00", histtype="step", linewidth=1.6, density=True, label="log odds ratio")
    axes.set(yscale="log", xlabel="nats", ylabel="density", xlim=(-12, 12))
    axes.set_title("50,000 pairs of uniform probabilities", loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
