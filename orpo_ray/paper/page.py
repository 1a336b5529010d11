"""The page of the paper remade: `paper/index.html`, beside the files of its tables and figures.

It shows whatever there is: of stages that have failed, or were not begun, it says why there is nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orpo_ray.errors import UserError
from orpo_ray.paper.doubts import doubts
from orpo_ray.paper.figures import paper_figures
from orpo_ray.paper.other_judges import disagreements
from orpo_ray.paper.outcomes import read_outcomes
from orpo_ray.paper.page_parts import (
    StageRow,
    TableView,
    grouped,
    lines_of,
    lines_of_figures,
    not_run,
    stage_rows,
    table_view,
    tally,
)
from orpo_ray.paper.scale import Scale, scale_of, short_count
from orpo_ray.paper.stages import SEEDS, PaperStages
from orpo_ray.paper.tables import paper_tables
from orpo_ray.report.numbers import number
from orpo_ray.report.page import render, write_page

NAME = "index.html"
_OURS = re.compile(r"(table-\d|figure-\d|win-rates-|rewards-|mt-bench).*\.(csv|md|tex|svg|png)")
"""Names of tables' and figures' files."""


@dataclass(frozen=True)
class _Shown:
    """A table, and those that hold its seeds' own numbers."""

    view: TableView
    below: Sequence[TableView]


def write_paper(stages: PaperStages, failed: Mapping[str, str]) -> Path:
    """Write every table, every figure and the page of what the stages have left so far; returns the page's path.

    `failed`: why, by the label of each stage that has. Raises `UserError`, naming the file, where one of a stage is
    damaged, or nothing can be written.
    """
    outcomes = read_outcomes(stages, failed)
    folder = outcomes.page_folder
    folder.mkdir(parents=True, exist_ok=True)
    tables = [table_view(table, table.write(folder), folder) for table in paper_tables(outcomes)]
    figures = paper_figures(outcomes)
    files = [figure.write(folder) for figure in figures]
    _remove_all_but(
        folder, {name for view in tables for _, name in view.files} | {f.name for own in files for f in own}
    )
    scale, rows = scale_of(outcomes), stage_rows(outcomes)
    lines = [*((view.table.title, lines_of(view)) for view in tables), ("Figures", lines_of_figures(figures))]
    html = render(
        "paper.html",
        title=f"The paper remade: {stages.config.name}",
        tally=tally(line for _, own in lines for line in own),
        notices=[*doubts(outcomes), *disagreements(outcomes)],
        scale=scale,
        status=_status(rows),
        groups=grouped(lines),
        facts=_facts(scale, rows),
        tables=_in_order(tables),
        figures=[
            (figure, [(file.suffix[1:].upper(), file.name) for file in made])
            for figure, made in zip(figures, files, strict=True)
        ],
        missing=list(not_run([view.table for view in tables], figures).items()),
        stages=rows,
        command=shlex.join(["orpo-ray", "paper", f"{stages.config.storage.path}/{stages.config.name}/config.yaml"]),
        configuration=stages.config.to_yaml(),
    )
    return write_page(folder / NAME, html)


def _remove_all_but(folder: Path, names: Collection[str]) -> None:
    """Tables and figures that an earlier configuration left, and this one has not."""
    try:
        for file in folder.iterdir():
            if file.name not in names and _OURS.fullmatch(file.name):
                file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _in_order(views: Sequence[TableView]) -> list[_Shown]:
    """Those that hold most first: win-rates, then what has other numbers, then what was not run."""
    names = {view.table.name for view in views}
    below = {f"{name}{SEEDS}" for name in names} & names
    shown = [
        _Shown(view, [own for own in views if own.table.name == f"{view.table.name}{SEEDS}"])
        for view in views if view.table.name not in below
    ]  # fmt: skip
    return sorted(shown, key=lambda each: (not each.view.has_plots, not each.view.has_numbers))


def _status(rows: Sequence[StageRow]) -> str:
    """Empty where every stage has finished."""
    left = [row for row in rows if row.missing]
    failed = sum(row.failed for row in rows)
    if not left:
        return ""
    words = f"{number(len(rows) - len(left))} of {number(len(rows))} stages had finished when this page was drawn"
    return f"{words}; {number(failed)} had failed." if failed else f"{words}."


def _facts(scale: Scale, rows: Sequence[StageRow]) -> list[tuple[str, str, str]]:
    """What each number is, the number, and a word on it."""
    counts = [short_count(model.parameters) for model in scale.models if model.parameters is not None]
    printed = [model.printed for model in scale.models if model.printed]
    finished = sum(not row.missing for row in rows)
    facts = [
        ("Parameters", ", ".join(counts) or "–", f"in place of {', '.join(printed)}" if printed else ""),
        ("Data", ", ".join(data.title for data in scale.data), ""),
        ("Training seeds", number(len(scale.seeds)), ", ".join(map(str, scale.seeds))),
        ("Stages finished", f"{number(finished)} of {number(len(rows))}", ""),
    ]
    return facts + ([("Judged by", scale.judge, "the paper: OPT-1.3B")] if scale.judge else [])
