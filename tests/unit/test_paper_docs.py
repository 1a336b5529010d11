"""What docs/paper.md says of the paper as it was remade is what the committed tables have."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper-toy"
TABLES = ("table-2", "table-2-by-truth", "table-3", "table-3-by-truth")


@pytest.mark.parametrize("table", TABLES)
def test_win_rates_are_those_of_the_table(table: str) -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    by_size: dict[str, list[str]] = {}
    with (RESULTS / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["seed"] == "all":
                value, low, high = (f"{100 * float(row[key]):.1f}" for key in ("value", "low", "high"))
                by_size.setdefault(row["size"], []).append(f"{value} ({low} to {high})")
    assert len(by_size) == 3
    for size, cells in by_size.items():
        judge = "the truth" if "truth" in table else "the judge"
        assert f"| {size} | {judge} | {' | '.join(cells)} |" in page, (table, size)
