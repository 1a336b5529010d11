"""The figure of what a policy has bought with which distance from its reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from orpo_ray.report.figures import CHOSEN, INK, SIZE, legend, svg
from orpo_ray.report.numbers import number
from orpo_ray.report.rollout_words import learned_otherwise
from orpo_ray.report.runs import Run, Series

Floats = NDArray[np.float64]
LARGEST = 1e100
"""No metric is; and differences of what is drawn are finite."""
_MOST_POINTS = 120
_APART = (0.13, 0.08)
"""Of a figure's width and height: labels that are nearer in both would overlap."""


@dataclass(frozen=True)
class _Side:
    """Where a label lies beside its point, in points of its font; the alignments are of the label."""

    offset: tuple[int, int]
    across: Literal["left", "center", "right"]
    along: Literal["bottom", "center", "top"]

    def box(self, place: Floats, characters: int) -> tuple[Floats, Floats]:
        """Its lower left and upper right corner, in shares of the figure."""
        size = np.array([0.018 * characters, 0.055])
        shift = {"left": 0.0, "bottom": 0.0, "center": -0.5, "right": -1.0, "top": -1.0}
        low = place + np.array(self.offset) * _POINT + size * [shift[self.across], shift[self.along]]
        return low, low + size


_SIDES = (
    _Side((6, -4), "left", "top"), _Side((0, 7), "center", "bottom"), _Side((0, -7), "center", "top"),
    _Side((7, 0), "left", "center"), _Side((-7, 0), "right", "center"), _Side((-6, 5), "right", "bottom"),
)  # fmt: skip
"""Those that come first are taken where several are as free."""
_POINT = np.array([1 / 270, 1 / 165])
"""Of a figure's width and height, about."""


def sound(series: Series) -> Series:
    """With NaN in place of what cannot be drawn."""
    steps, values = series
    return steps, np.where(np.abs(values) < LARGEST, values, np.nan)


def reward_labels(run: Run) -> tuple[str, str]:
    """What the rewards of rollouts and of held-out prompts are called on one axis."""
    return ("rollouts, as learned from", "held-out, as given") if learned_otherwise(run) else ("rollouts", "held-out")


def frontier(run: Run) -> Markup | None:
    """The way that the policy went in KL and reward: rollouts the fainter the earlier, evaluations marked."""
    drawn, held_out = _path(run, "kl", "reward"), _path(run, "eval_kl", "eval_reward")
    if not len(drawn) and not len(held_out):
        return None

    rollouts, given = reward_labels(run)

    def draw(axes: Axes) -> None:
        _rollouts_on_the_way(axes, drawn, rollouts)
        axes.plot(
            held_out[:, 1], held_out[:, 2], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), marker="o", markersize=5,
            markerfacecolor="none", label=given if len(held_out) else None,
        )  # fmt: skip
        at = held_out[held_out[:, 0] == (-1 if run.kept_step is None else run.kept_step)]
        if len(at):
            axes.plot(at[-1:, 1], at[-1:, 2], color=INK, linestyle="", marker="*", markersize=12, label="kept")
        axes.set(xlabel="KL to the reference, nats a response (square-root scale)", ylabel="reward")
        axes.set_xscale("function", functions=(_root, _square))  # as in arXiv 2210.10760; most of a way is near 0
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.margins(0.08, 0.12)
        _label_steps(axes, held_out, at[-1:, 0], np.concatenate([drawn, held_out])[:, 1:])
        legend(axes)

    return svg(draw, "Mean reward against KL to the reference, a point for each step", SIZE)


def _root(kl: Floats) -> Floats:
    found: Floats = np.copysign(np.sqrt(np.abs(kl)), kl)
    return found


def _square(root: Floats) -> Floats:
    found: Floats = np.copysign(np.square(root), root)
    return found


def _path(run: Run, across: str, up: str) -> Floats:
    """Step, `across` and `up`, `(points, 3)`, of the lines that have both."""
    found = [line for line in run.lines if across in line and up in line]
    part = Run(run.folder, run.config, found, None, [])
    (steps, x), (_, y) = sound(part.series(across)), sound(part.series(up))
    path = np.column_stack([steps, x, y])
    return path[np.isfinite(path).all(1)]


def _rollouts_on_the_way(axes: Axes, drawn: Floats, label: str) -> None:
    if not len(drawn):
        return
    parts = np.array_split(drawn, min(len(drawn), _MOST_POINTS))
    means = np.array([part.mean(0) for part in parts])
    axes.plot(means[:, 1], means[:, 2], color=CHOSEN, linewidth=0.7, alpha=0.35)
    strength = np.linspace(0.25, 1, len(means)) if len(means) > 1 else np.ones(1)
    for (_, x, y), alpha in zip(means.tolist(), strength.tolist(), strict=True):
        last = alpha == 1
        axes.plot(
            [x],
            [y],
            color=CHOSEN,
            linestyle="",
            marker=".",
            markersize=7,
            alpha=alpha,
            label=label if last else None,
        )


def _label_steps(axes: Axes, path: Floats, kept: Floats, marks: Floats) -> None:
    """Steps beside the evaluations: of the kept, the last and the first, and of those that there is room for. Each lies
    on the side where it covers the fewest of `marks (points, 2)`."""
    if not len(path):
        return
    axes.get_xlim(), axes.get_ylim()  # they are found when they are asked for
    places, others = (
        axes.transAxes.inverted().transform(axes.transData.transform(own)) for own in (path[:, 1:], marks)
    )
    order = [*np.flatnonzero(np.isin(path[:, 0], kept)), len(path) - 1, 0, *range(1, len(path) - 1)]
    taken: list[Floats] = []
    for index in order:
        if all((np.abs(places[index] - other) > _APART).any() for other in taken):
            taken.append(places[index])
            step, x, y = path[index].tolist()
            text = f"{step:.0f}" if taken[1:] else f"step {step:.0f}"
            side = _side(places[index], len(text), others)
            axes.annotate(
                text, (x, y), side.offset, textcoords="offset points", ha=side.across, va=side.along, fontsize=8,
                color=INK,
            )  # fmt: skip


def _side(place: Floats, characters: int, marks: Floats) -> _Side:
    """Where a label of the point at `place` covers the fewest marks and stays inside; all in shares of the figure."""

    def cost(side: _Side) -> tuple[bool, int]:
        low, high = side.box(place, characters)
        covered = ((marks > low) & (marks < high)).all(1).sum()
        return bool((low < 0).any() or (high > 1).any()), int(covered)

    return min(_SIDES, key=cost)


def frontier_caption(run: Run) -> str:
    """From where to where it went, in words."""
    way = _path(run, "eval_kl", "eval_reward")
    said = "A rise is worth what it costs in KL: whether it is real, only another judge can tell."
    otherwise = learned_otherwise(run)
    if len(way) < 2:
        return f"{otherwise} {said}".strip()
    ends = [f"{number(reward, 2)} at {number(kl, 2)} nats" for _, kl, reward in (way[0].tolist(), way[-1].tolist())]
    return " ".join(
        [f"Held-out: reward {' → '.join(ends)}. Rollouts: the fainter the earlier.", *filter(None, [otherwise]), said]
    )
