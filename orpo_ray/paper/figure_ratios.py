"""Figure 6: what the two contrasts are of probabilities drawn at random. It needs no run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from orpo_ray.objectives.sampled_ratios import sampled_ratios
from orpo_ray.paper.figure_drawing import Drawing, Panel, colour_entry
from orpo_ray.report.evaluation_figures import MODELS
from orpo_ray.report.figures import CHOSEN, REJECTED

BETAS = {1.0: CHOSEN, 0.1: MODELS[4]}
"""Of the probability ratio, with their colours."""
ODDS = "log odds ratio"


def draw_ratios(axes: Axes) -> None:
    """Densities in nats on a log axis, of 50,000 pairs of uniform probabilities."""
    bins = np.linspace(-12, 12, 121).tolist()
    shown = {_of(beta): (sampled_ratios(beta=beta).probability, colour) for beta, colour in BETAS.items()}
    shown[ODDS] = (sampled_ratios().odds, REJECTED)
    for name, (ratios, colour) in shown.items():
        axes.hist(ratios, bins, color=colour, histtype="step", linewidth=1.6, density=True, label=name)
    axes.set(yscale="log", xlabel="nats", ylabel="density", xlim=(-12, 12))


def ratios_drawing() -> Drawing:
    entries: Mapping[str, Artist] = {_of(beta): colour_entry(colour) for beta, colour in BETAS.items()}
    return Drawing((Panel("", draw_ratios),), ({**entries, ODDS: colour_entry(REJECTED)},))


def _of(beta: float) -> str:
    return f"log probability ratio, β = {beta:g}"
