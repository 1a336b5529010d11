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
_ACROSS, _LONG = 4, 12
"""Entries of a legend above a panel, where their texts are no longer than so many characters."""
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
    entries: Sequence[Mapping[str, Artist]]
    """The legend's, by their text; where there are columns enough each of these has rows of its own."""
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
        self._legend(figure, columns)

    def _legend(self, figure: Figure, columns: int) -> None:
        groups = [dict(group) for group in self.entries if group]
        if not groups:
            return
        if columns > 1:
            groups = [{text: entry for group in groups for text, entry in group.items()}]
        most = _ACROSS * columns if max(map(len, groups[0])) <= _LONG else 2 * columns
        across = min(most, max(map(len, groups)))
        rows = [list(group.items())[i : i + across] for group in groups for i in range(0, len(group), across)]
        padded = [[*row, *[("", _nothing())] * (across - len(row))] for row in rows]
        by_column = [row[i] for i in range(across) for row in padded]  # matplotlib fills a legend column by column
        figure.legend(
            [entry for _, entry in by_column], [text for text, _ in by_column], loc="outside upper left", ncols=across,
            columnspacing=1.2, handlelength=2.2,
        )  # fmt: skip


def colour_entry(colour: str) -> Line2D:
    return Line2D([], [], color=colour, linewidth=2.4)


def seed_entries(seeds: Sequence[int], *, marks: bool = True) -> dict[str, Artist]:
    """None where there is one seed alone, which needs no telling apart."""
    if len(seeds) < 2:
        return {}
    looks = {f"seed {seed}": Look.at(place) for place, seed in enumerate(seeds)}
    return {
        text: Line2D(
            [],
            [],
            color=NEUTRAL,
            linewidth=1.4,
            linestyle=look.line,
            marker=look.mark if marks else None,
            markersize=3.5,
        )
        for text, look in looks.items()
    }


def _nothing() -> Line2D:
    return Line2D([], [], linestyle="")
