"""Published numbers, among which one's own are shown, read from a file of the user's.

No published number is shipped. AlpacaEval's own tables can be read as they are, and so can any other with a column of
names and one of numbers. Left out: whether the published ones were made by the same judge, prompts and sampling. A
table does not say, and only then do they compare; who shows them beside each other has to say whose judge was used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Row, number, records

NAMES = "name", "model", ""
"""What a column of names may be called: AlpacaEval's tables have one without a heading."""
ALSO_CALLED = {"length_controlled_winrate": ("length_controlled", "length_controlled_win_rate")}


@dataclass(frozen=True)
class Entry:
    name: str
    numbers: dict[str, float]
    """By column, those that are told; in the units of the table, percent on AlpacaEval's."""


def read_published(path: Path, columns: Sequence[str]) -> list[Entry]:
    """Of a table (CSV, TSV), a JSON array or JSON lines: the `columns` of each record that has a number in one of them.

    Two may have one name: published tables have that. Raises `UserError`, naming file and record, where a name is
    missing or a number is none, and where no record has a number in any column.
    """
    entries = [_entry(location, row, columns) for location, row in records(path)]
    told = [entry for entry in entries if entry.numbers]
    if not told:
        raise UserError(f"{path}: no record has {' or '.join(columns)}")
    return told


def ranked(entries: Iterable[Entry], by: str) -> list[Entry]:
    """The highest `by` first, and those without it last."""
    return sorted(entries, key=lambda entry: (-entry.numbers.get(by, -math.inf), entry.name))


def _entry(location: str, row: Row, columns: Sequence[str]) -> Entry:
    name = next((row[key] for key in NAMES if isinstance(row.get(key), str) and row[key].strip()), None)
    if name is None:
        raise UserError(f"{location}: has no name")
    numbers = {}
    for column in columns:
        called = next((each for each in (column, *ALSO_CALLED.get(column, ())) if each in row), column)
        try:
            value = number(row, called)
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
        if value is not None:
            numbers[column] = value
    return Entry(name, numbers)
