"""Figures of a reward model, from what it gave each held-out pair (`eval_scores.parquet`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from orpo_ray.errors import UserError
from orpo_ray.objectives.reliability import Accuracy, accuracy, accuracy_by_length, calibration
from orpo_ray.report.columns import KEY, NUMBER, read_columns
from orpo_ray.report.densities import bins, density
from orpo_ray.report.figures import CHOSEN, INK, NEUTRAL, REJECTED, SIZE, Percent, legend, svg
from orpo_ray.report.numbers import number

Floats = NDArray[np.float64]
_LARGEST = 1e100  # no reward is; and the square of what is drawn is finite


def reward_figures(scores: Path) -> list[tuple[str, Markup, str]]:
    """Title, figure and caption of each: distribution, calibration, accuracy by length; none where there is no pair.

    Raises `UserError` where `scores` is no such file.
    """
    columns = {"chosen": NUMBER, "rejected": NUMBER, "chosen_tokens": KEY, "rejected_tokens": KEY}
    table = read_columns(scores, columns)
    chosen, rejected = (np.array(table[name], dtype=np.float64) for name in ("chosen", "rejected"))
    if not (np.abs(np.r_[chosen, rejected]) < _LARGEST).all():
        raise UserError(f"{scores}: chosen or rejected holds a reward that is not finite")
    if not len(chosen):
        return []
    margins = chosen - rejected
    differences = np.array(table["chosen_tokens"]) - np.array(table["rejected_tokens"])
    whole = accuracy(margins)
    low, high = whole.ci95
    return [
        (
            "Rewards of chosen and rejected",
            _distribution(chosen, rejected),
            f"Accuracy {whole.accuracy:.1%} of {whole.pairs} pairs, 95% interval {low:.1%} to {high:.1%}. Mean "
            f"margin, chosen − rejected, {number(float(margins.mean()), 2)} in the reward's unit.",
        ),
        (
            "Calibration",
            _reliability(margins),
            _sureness(margins),
        ),
        (
            "Accuracy by length",
            _by_length(margins, differences),
            _length_caption(margins, differences),
        ),
    ]


def _sureness(margins: Floats) -> str:
    found = calibration(margins)
    sure = sum(b.count * b.confidence for b in found.bins) / len(margins)
    return (
        f"Expected calibration error {found.expected_calibration_error:.3f}: {sure:.1%} sure on average, and right on "
        f"{accuracy(margins).accuracy:.1%} of pairs. Dashed: as often right as sure. Larger dots hold more pairs."
    )


def _length_caption(margins: Floats, differences: NDArray[np.int64]) -> str:
    """Whether it just likes long answers shows where chosen is the shorter."""
    found = accuracy_by_length(margins, differences)
    said = [
        f"{group.accuracy:.1%} of {group.pairs} pairs whose chosen response is the {word} ({group.ci95[0]:.1%} to "
        f"{group.ci95[1]:.1%})"
        for word, group in (("longer", found.chosen_longer), ("shorter", found.chosen_shorter))
        if group is not None
    ]
    return f"Right on {', on '.join(said)}; 95% intervals." if said else ""


def _distribution(chosen: Floats, rejected: Floats) -> Markup:
    both = np.r_[chosen, rejected]
    edges = np.histogram_bin_edges(both, bins(chosen.size)).tolist()
    x = np.linspace(both.min(), both.max(), 240)

    def draw(axes: Axes) -> None:
        for name, rewards, colour in (("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)):
            axes.hist(rewards, edges, density=True, color=colour, alpha=0.35, label=name)
            axes.plot(x, density(rewards, x), color=colour)
        axes.set(xlabel="reward", ylabel="density")
        legend(axes)

    return svg(draw, "Distribution of rewards of chosen and rejected responses", SIZE)


def _reliability(margins: Floats) -> Markup:
    bins = calibration(margins).bins

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=NEUTRAL, linewidth=0.8, linestyle=(0, (4, 3)))
        sizes = 160 * np.array([b.count for b in bins]) / max(b.count for b in bins)
        axes.scatter([b.confidence for b in bins], [b.accuracy for b in bins], sizes + 8, color=INK, alpha=0.75)
        axes.set(xlabel="confidence", ylabel="share it is right", xlim=(0.48, 1.02), ylim=(-0.02, 1.05))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(Percent())

    return svg(draw, "Share of right preferences by confidence; larger dots hold more pairs", SIZE)


def _by_length(margins: Floats, differences: NDArray[np.int64]) -> Markup:
    groups = accuracy_by_length(margins, differences).quintiles

    def draw(axes: Axes) -> None:
        for x, group in enumerate(groups):
            _point(axes, x, group.accuracy)
        axes.axhline(0.5, color=NEUTRAL, linewidth=0.8)
        labels = [_range(group.shortest, group.longest) for group in groups]
        axes.set_xticks(range(len(groups)), labels, fontsize=7)
        axes.yaxis.set_major_formatter(Percent())
        axes.set(xlabel="tokens that chosen is longer", ylabel="accuracy", ylim=(0, 1.05))

    return svg(draw, "Accuracy by how much longer the chosen response is", SIZE)


def _range(low: int, high: int) -> str:
    """`−3 to +1`; one number where both are it."""
    ends = [f"{'+' if end > 0 else ''}{number(end)}" for end in (low, high)]
    return " to ".join(dict.fromkeys(ends))


def _point(axes: Axes, x: int, group: Accuracy) -> None:
    axes.plot([x, x], group.ci95, color=INK, linewidth=2)
    axes.plot([x], [group.accuracy], marker="o", color=INK)
