"""A table of the paper remade: its cells for a page, its numbers as CSV, and itself as Markdown and LaTeX.

The CSV has a row for each number, in full precision, and neither time, machine nor absolute path: the same stages give
the same bytes, in whatever order they were carried out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path

from orpo_ray.storage.run_folder import write_atomically

ALL = "all"
"""In place of a seed: the mean over seeds."""


@dataclass(frozen=True)
class Source:
    """The stage that a number is of."""

    label: str
    """What the link to it is called."""
    folder: str
    """Relative to the page's folder."""
    command: str
    """What carries out that stage alone; empty where its folder holds no configuration yet."""


@dataclass(frozen=True)
class Cell:
    text: str
    numeric: bool = False
    details: tuple[str, ...] = ()
    """Lines below it: an interval, the paper's number."""
    verdict: str = ""
    """One of `paper.verdicts`' four, where the paper has a number to hold it against."""
    why: str = ""
    """Why that verdict, or why there is no number; one sentence."""
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Number:
    """A row of the CSV. Fields that do not apply are empty; what was not run has no `value`."""

    quantity: str
    """Such as `win_rate`. Rates are fractions of 1."""
    data: str = ""
    size: str = ""
    method: str = ""
    against: str = ""
    judge: str = ""
    seed: str = ""
    """Or `ALL`."""
    value: float | None = None
    sd: float | None = None
    """Of rounds, with all seeds the mean of theirs; of a benchmark the standard error."""
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    prompts: int | None = None
    rounds: int | None = None
    """How many the number is of."""
    round: int | None = None
    """Which it is of, where a benchmark has several."""
    paper: float | None = None
    """The paper's number."""
    paper_sd: float | None = None
    verdict: str = ""
    holds_paper: bool | None = None
    """Whether the paper's number lies in the interval."""
    folder: str = ""
    """Of the stage, relative to the page's; several are parted by a space."""


@dataclass(frozen=True)
class Table:
    name: str
    """Of its files, such as `table-2`."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: tuple[Number, ...]
    notes: tuple[str, ...] = ()

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(Number)]
        writer.writerow(names)
        writer.writerows([_written(getattr(number, name)) for name in names] for number in self.numbers)
        return text.getvalue()

    def markdown(self) -> str:
        """A pipe table behind its title, with its notes below."""
        numeric = self._numeric()
        lines = [
            _piped(map(_markdown, self.columns)),
            _piped("--:" if number else ":--" for number in numeric),
            *(_piped(_markdown_cell(cell) for cell in row) for row in self.rows),
        ]
        notes = [f"{_markdown(note)}\n" for note in self.notes]
        return "\n".join([f"**{_markdown(self.title)}**\n", *lines, "", *notes])

    def latex(self) -> str:
        """For the package booktabs. Details of cells are lines of smaller type below them."""
        alignment = "".join("r" if number else "l" for number in self._numeric())
        lines = [
            r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}", rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule", _ampersands(map(_latex, self.columns)), r"\midrule",
        ]  # fmt: skip
        for row in self.rows:
            lines.append(_ampersands(_latex(cell.text) for cell in row))
            below = [_lines_below(cell) for cell in row]
            lines += [_ampersands(map(_small, line)) for line in zip_longest(*below, fillvalue="")]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_latex(note)}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}", ""])

    def write(self, folder: Path) -> list[Path]:
        """The three files; each comes into being whole."""
        made = {".csv": self.csv(), ".md": self.markdown(), ".tex": self.latex()}
        files = [folder / f"{self.name}{suffix}" for suffix in made]
        for file, text in zip(files, made.values(), strict=True):
            write_atomically(file, text)
        return files

    def _numeric(self) -> list[bool]:
        """Of each column whether there is a number in it."""
        return [any(row[i].numeric for row in self.rows) for i in range(len(self.columns))]


def _written(value: str | float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value) if isinstance(value, str) else repr(value)


def _lines_below(cell: Cell) -> Sequence[str]:
    return [*cell.details, *([cell.verdict] if cell.verdict not in ("", cell.text) else [])]


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    return "<br>".join(_markdown(line) for line in (cell.text, *_lines_below(cell)))


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "−": "$-$", "–": "--", "±": r"$\pm$", "→": r"$\to$", "λ": r"$\lambda$",
    "α": r"$\alpha$", "β": r"$\beta$", "\u00a0": "~",
    "[": "{[}", "]": "{]}", "*": "{*}",  # behind the end of a row they would be its options
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(re.split(r"[ \t\r\n]+", text)))


def _small(text: str) -> str:
    return rf"{{\footnotesize {_latex(text)}}}" if text else ""


def _ampersands(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"
