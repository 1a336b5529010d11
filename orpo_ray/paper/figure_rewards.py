"""Figures 5 and 11: how the rewards of each method's answers are distributed, a panel for each size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from orpo_ray.paper.cells import METHODS
from orpo_ray.paper.figure_drawing import Drawing, Look, Panel, colour_entry, seed_entries
from orpo_ray.report.densities import bins, density
from orpo_ray.report.evaluation_figures import colours
from orpo_ray.report.evaluation_folder import Floats

_POINTS = 240

Rewards = Mapping[int, Mapping[str, Floats]]
"""By seed and method: rewards of whatever shape, NaN where there is none; at least one of each is finite."""


def rewards_drawing(sizes: Mapping[str, Rewards]) -> Drawing:
    """By the panel's title, each size's rewards: the histogram of all seeds, and a density for each seed."""
    seeds = sorted({seed for rewards in sizes.values() for seed in rewards})
    present = {method for rewards in sizes.values() for own in rewards.values() for method in own}
    colour = colours(list(METHODS))
    entries: dict[str, Artist] = {METHODS[m]: colour_entry(colour[m]) for m in METHODS if m in present}
    panels = [Panel(title, _panel(rewards, seeds, colour)) for title, rewards in sizes.items()]
    return Drawing(panels, (entries, seed_entries(seeds, marks=False)), height=1.9)


def _panel(rewards: Rewards, seeds: list[int], colour: Mapping[str, str]) -> Callable[[Axes], None]:
    found = {
        seed: {method: own[np.isfinite(own)] for method, own in by_method.items()}
        for seed, by_method in rewards.items()
    }
    every = np.concatenate([own for by_method in found.values() for own in by_method.values()])
    margin = 0.05 * max(float(np.ptp(every)), 1e-6)
    x = np.linspace(every.min() - margin, every.max() + margin, _POINTS)

    def draw(axes: Axes) -> None:
        for method in METHODS:
            own = {seed: by_method[method] for seed, by_method in found.items() if method in by_method}
            if not own:
                continue
            together = np.concatenate(list(own.values()))
            edges = np.histogram_bin_edges(every, bins(together.size)).tolist()
            axes.hist(together, edges, density=True, color=colour[method], alpha=0.16)
            for seed, values in own.items():
                style = Look.at(seeds.index(seed)).line
                axes.plot(x, density(values, x), color=colour[method], linewidth=1.3, linestyle=style)
        axes.set(xlabel="reward", ylabel="density")

    return draw
