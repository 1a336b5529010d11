"""How a figure of the paper is drawn: panels that share axes, one legend above them, a look for each seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from orpo_ray.report.evaluation_figures import ALL_VARIABLES
from orpo_ray.report.figures import NEUTRAL, SIZE, page_svg, picture

Shared = Literal["none", "all"]
LINES = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.4, 1.4)))
MARKS = ("o", "s", "^", "D")
_BESIDE = 3
"""Panels that a file has side by side."""
_WIDTH = 4.2
"""Inches of a panel of a file."""


@dataclass(frozen=True)
class Look:
    """Of a seed's lines, the same in every figure."""

    line: str | tuple[float, tuple[float, ...]]
    mark: str

    @classmethod
    def at(cls, place: int) -> Look:
        """The fifth seed looks like the first again, with another mark."""
        return cls(LINES[place % len(LINES)], MARKS[(place + place // len(LINES)) % len(MARKS)])


@dataclass(frozen=True)
class Panel:
    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Drawing:
    """A page stands the panels on each other, for a phone's width; a file sets them side by side."""

    panels: Sequence[Panel]
    entries: Mapping[str, Artist]
    """The legend's, by their text."""
    share_x: Shared = "all"
    share_y: Shared = "all"
    height: float = 2.3
    """Inches of a panel on a page."""
    over_steps: bool = False
    """Whether x counts whole steps."""

    def svg(self, title: str) -> Markup:
        """For a page; `title` is what a reader hears who does not see it."""
        size = (SIZE[0], 0.75 + self.height * len(self.panels))
        return page_svg(lambda figure: self.paint(figure, 1), title, size, ALL_VARIABLES)

    def file(self, kind: Literal["svg", "png"]) -> bytes:
        """The same bytes whenever it is drawn."""
        columns = min(len(self.panels), _BESIDE)
        rows = -(-len(self.panels) // columns)
        width = SIZE[0] + 0.8 if columns == 1 else _WIDTH * columns
        size = (width, 0.7 + max(self.height, 2.7) * rows)
        return picture(lambda figure: self.paint(figure, columns), size, kind)

    def paint(self, figure: Figure, columns: int) -> None:
        """All panels, in rows of `columns`."""
        rows = -(-len(self.panels) // columns)
        places = figure.subplots(rows, columns, sharex=self.share_x, sharey=self.share_y, squeeze=False)
        for place, (row, column) in enumerate(product(range(rows), range(columns))):
            axes = places[row][column]
            if place >= len(self.panels):
                axes.remove()
                continue
            panel = self.panels[place]
            panel.draw(axes)
            if panel.title:
                axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
            if self.over_steps:
                axes.set_xlabel("step")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            if self.share_x == "all" and place + columns < len(self.panels):
                axes.set_xlabel("")
                axes.tick_params(labelbottom=False)
            elif self.share_x == "all":
                axes.tick_params(labelbottom=True)  # nothing may stand below it in a row that is not full
            if self.share_y == "all" and column:
                axes.set_ylabel("")
        if self.entries:
            longest = max(map(len, self.entries))
            across = (2 if longest > 20 else 3) if columns == 1 else 4 * columns
            figure.legend(
                list(self.entries.values()), list(self.entries), loc="outside upper left", ncols=across,
                columnspacing=1.4, handlelength=2.4,
            )  # fmt: skip


def colour_entry(colour: str) -> Line2D:
    return Line2D([], [], color=colour, linewidth=2.4)


def seed_entries(seeds: Sequence[int]) -> dict[str, Artist]:
    """None where there is one seed alone, which needs no telling apart."""
    if len(seeds) < 2:
        return {}
    return {f"seed {seed}": _line(Look.at(place)) for place, seed in enumerate(seeds)}


def _line(look: Look) -> Line2D:
    return Line2D(
        [], [], color=NEUTRAL, linewidth=1.4, linestyle=look.line, marker=look.mark, markersize=3.5
    )  # fmt: skip
