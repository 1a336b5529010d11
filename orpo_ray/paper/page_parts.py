"""What the page of the paper remade shows of tables and stages: cells with their seeds, claims, what was not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from orpo_ray.paper.figure import Figure
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.table import ALL, Cell, Number, Source, Table
from orpo_ray.paper.verdicts import Word
from orpo_ray.report.numbers import number

NOT_RUN = Word.NOT_RUN.value
WIN_RATE = "win_rate"
_PAGE = "report.html"


@dataclass(frozen=True)
class Plot:
    """Win-rates of a cell on a line from 0 to 100 %, in percent."""

    low: float
    high: float
    seeds: tuple[float, ...]
    paper: float | None
    said: str
    """The same in words."""


@dataclass(frozen=True)
class Link:
    label: str
    target: str
    """Relative to the page; empty where nothing is there yet."""
    command: str


@dataclass(frozen=True)
class CellView:
    cell: Cell
    plot: Plot | None
    count: str
    """Of what the number is the mean."""
    links: tuple[Link, ...]


@dataclass(frozen=True)
class TableView:
    table: Table
    rows: list[list[CellView]]
    files: list[tuple[str, str]]
    """A word and a file's name for each."""

    @property
    def has_numbers(self) -> bool:
        """Of ours, which come from stages; the paper's do not."""
        return any(cell.sources for row in self.table.rows for cell in row)

    @property
    def has_plots(self) -> bool:
        return any(view.plot for row in self.rows for view in row)


@dataclass(frozen=True)
class Line:
    """One number, or one figure, of the paper and whether ours agrees with it."""

    what: str
    ours: str
    """Empty where there is none."""
    beside: tuple[str, ...]
    """Its interval, what it is the mean of, the paper's number."""
    verdict: str
    why: str
    anchor: str


@dataclass(frozen=True)
class StageRow:
    label: str
    missing: str
    """Empty where it has finished."""
    failed: bool
    target: str
    folder: str
    command: str
    needs: tuple[str, ...]


def table_view(table: Table, files: Iterable[Path], folder: Path) -> TableView:
    """`folder`: of the page, where `files` of the table are."""
    groups = _win_rates(table)
    rows = []
    for row in table.rows:
        views = []
        for column, cell in enumerate(row):
            numbers = groups.get((row[0].text, column), []) if column else []
            links = tuple(_link(source, folder) for source in cell.sources)
            views.append(CellView(cell, plot_of(numbers), _count(numbers), links))
        rows.append(views)
    words = {".csv": "CSV", ".md": "Markdown", ".tex": "LaTeX"}
    return TableView(table, rows, [(words[file.suffix], file.name) for file in files])


def plot_of(numbers: Sequence[Number]) -> Plot | None:
    """Of a win-rate over all seeds and those of each; None where there is none."""
    overall = next((one for one in numbers if one.seed == ALL), None)
    if overall is None or overall.value is None or overall.low is None or overall.high is None:
        return None
    seeds = tuple(100 * one.value for one in numbers if one.seed != ALL and one.value is not None)
    low, high = (100 * min(1.0, max(0.0, end)) for end in (overall.low, overall.high))
    paper = None if overall.paper is None else 100 * overall.paper
    said = f"interval {low:.1f} to {high:.1f}; seeds {', '.join(f'{seed:.1f}' for seed in seeds)}" + (
        "" if paper is None else f"; the paper {paper:.1f}"
    )
    return Plot(low, high, seeds, paper, said)


def lines_of(view: TableView) -> list[Line]:
    """A claim for each cell that is held against a number of the paper."""
    groups, found = _win_rates(view.table), []
    for row, views in zip(view.table.rows, view.rows, strict=True):
        for column, cell in enumerate(row):
            if not cell.verdict:
                continue
            heading = view.table.columns[column]
            numbers = groups.get((row[0].text, column), [])
            said = _in_words(numbers, heading.removeprefix("vs ")) or heading
            ours = "" if cell.text == NOT_RUN else cell.text
            beside = tuple(part for part in (*cell.details, views[column].count) if part)
            found.append(Line(f"{row[0].text}: {said}", ours, beside, cell.verdict, cell.why, view.table.name))
    return found


def grouped(lines: Sequence[tuple[str, Sequence[Line]]]) -> list[tuple[str, list[Line]]]:
    """Titles and lines, without groups of which nothing was run: those are lines of a last group, one for each."""
    found = [(title, list(own)) for title, own in lines if any(line.verdict != NOT_RUN for line in own)]
    empty = [
        Line(title, "", (_counted(len(own), "number"),), NOT_RUN, _reasons(own), own[0].anchor)
        for title, own in lines if own and all(line.verdict == NOT_RUN for line in own)
    ]  # fmt: skip
    return [*found, *([("Not run", empty)] if empty else [])]


def _counted(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def _reasons(lines: Iterable[Line]) -> str:
    return "; ".join(dict.fromkeys(line.why for line in lines))


def tally(lines: Iterable[Line]) -> list[tuple[str, int]]:
    """How many have each verdict, in the order of `Word`."""
    count = Counter(line.verdict for line in lines)
    return [(word.value, count[word.value]) for word in Word if count[word.value]]


def lines_of_figures(figures: Iterable[Figure]) -> list[Line]:
    return [
        Line(figure.title, "", (), figure.verdict.word.value, figure.verdict.why, figure.name)
        for figure in figures if figure.verdict is not None
    ]  # fmt: skip


def not_run(tables: Iterable[Table], figures: Iterable[Figure]) -> dict[str, list[str]]:
    """Each reason, with what it keeps from being there."""
    found: dict[str, list[str]] = {}
    for table in tables:
        for row in table.rows:
            for column, cell in enumerate(row):
                if cell.why and cell.text == NOT_RUN:
                    place = f"{short_title(table)}, {row[0].text}, {table.columns[column]}"
                    found.setdefault(cell.why, []).append(place)
    for figure in figures:
        if figure.verdict is not None and figure.verdict.word == Word.NOT_RUN:
            found.setdefault(figure.verdict.why, []).append(figure.title)
    return found


def short_title(table: Table) -> str:
    """`Table 2`, or the whole title of what the paper has not."""
    head, dot, _ = table.title.partition(". ")
    return head if dot else table.title


def stage_rows(outcomes: Outcomes) -> list[StageRow]:
    """Every stage, in the order in which they are carried out."""
    rows = []
    for stage in outcomes.stages.graph:
        place = outcomes.stages.places[stage.label]
        folder = outcomes.link(place)
        why = outcomes.missing(place)
        rows.append(
            StageRow(
                stage.label, why, stage.label in outcomes.failed, _target(folder, outcomes.page_folder), folder,
                outcomes.command(place), stage.needs,
            )
        )  # fmt: skip
    return rows


def _win_rates(table: Table) -> Mapping[tuple[str, int], list[Number]]:
    """By the first cell of a row and a column, what the CSV has of win-rates over all seeds and by seed.

    Numbers come in the order of cells, a group for each; a table that has them otherwise has none here.
    """
    own = [one for one in table.numbers if one.quantity == WIN_RATE]
    groups = [list(group) for _, group in groupby(own, lambda one: (one.data, one.size, one.against, one.judge))]
    places = [(row[0].text, column) for row in table.rows for column in range(1, len(row))]
    if [group[0].size for group in groups] != [row for row, _ in places]:
        return {}
    return dict(zip(places, groups, strict=True))


def _count(numbers: Sequence[Number]) -> str:
    """`3 seeds, 200 prompts`; with several rounds, so many answers to each."""
    overall = next((one for one in numbers if one.seed == ALL and one.value is not None), None)
    if overall is None:
        return ""
    seeds = sum(one.seed != ALL and one.value is not None for one in numbers)
    prompts = overall.prompts or max((one.prompts or 0 for one in numbers), default=0)
    parts = [_counted(seeds, "seed"), _counted(prompts, "prompt") if prompts else ""]
    if overall.rounds is not None and overall.rounds > 1:
        parts.append(f"{overall.rounds} rounds")
    return ", ".join(part for part in parts if part)


def _in_words(numbers: Sequence[Number], other: str) -> str:
    """Who wins, by the interval alone; empty of what is no win-rate, or was not run."""
    overall = next((one for one in numbers if one.seed == ALL), None)
    if overall is None:
        return ""
    if overall.low is None or overall.high is None:
        return f"ORPO against {other}"
    if overall.low > 0.5:
        return f"ORPO beats {other}"
    if overall.high < 0.5:
        return f"ORPO loses to {other}"
    return f"ORPO is not told apart from {other}"


def _link(source: Source, folder: Path) -> Link:
    return Link(source.label, _target(source.folder, folder), source.command)


def _target(relative: str, folder: Path) -> str:
    """The page in a stage's folder, else the folder itself, else nothing; relative to `folder`."""
    if (folder / relative / _PAGE).is_file():
        return f"{relative}/{_PAGE}"
    return f"{relative}/" if (folder / relative).is_dir() else ""
