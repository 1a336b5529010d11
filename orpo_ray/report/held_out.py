"""How many held-out comparisons a run's accuracies are of, and the intervals that follow from so few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orpo_ray.config.metrics import of_unseen
from orpo_ray.errors import UserError
from orpo_ray.parsing import finite, read_object
from orpo_ray.report.columns import KEY, NUMBER, TEXT, read_columns
from orpo_ray.report.numbers import number, percent
from orpo_ray.statistics.accuracy import wilson

ACCURACY = "eval_reward_accuracy"
UNSEEN_ACCURACY = of_unseen(ACCURACY)


class Part(NamedTuple):
    """Held-out comparisons, or labelled responses."""

    rows: int
    """So many."""
    records: int
    """Of so many records: comparisons of one record are not independent, so the interval is of these."""
    what: str = "pairs"

    def __str__(self) -> str:
        of_records = "" if self.rows == self.records else f" of {self.records:,} prompts"
        what = "comparisons" if of_records and self.what == "pairs" else self.what
        return f"{self.rows:,} held-out {what}{of_records}"


@dataclass(frozen=True)
class HeldOut:
    """What the accuracies of one run are of, by metric; those without an entry are not known to be of anything."""

    parts: dict[str, Part]

    def interval(self, metric: str, value: Any) -> tuple[float, float] | None:
        """95 %, after Wilson; None where `metric` is no accuracy, or of what is not known."""
        part, share = self.parts.get(metric), finite(value)
        return None if part is None or not 0 <= share <= 1 else wilson(share, part.records)

    def told(self, metric: str, value: Any) -> str:
        """`of 15 held-out pairs, 95% interval 41.7% to 84.8%`; empty where there is no interval."""
        found = self.interval(metric, value)
        if found is None:
            return ""
        low, high = found
        return f"of {self.parts[metric]}, 95% interval {percent(low, 1)} to {percent(high, 1)}"

    def legend(self, metrics: Iterable[str]) -> str:
        """What is written behind an accuracy in a table that has `metrics`; empty where none is known."""
        parts: dict[str, Part] = {}
        for metric in metrics:
            if (part := self.parts.get(metric)) is not None:
                parts.setdefault(part.what, part)
        of = " and ".join(map(str, parts.values()))
        return f"Behind an accuracy: its 95% interval (Wilson), of {of}." if of else ""

    def cell(self, metric: str, value: Any, digits: int = 3) -> str:
        """The number for a table, of an accuracy with its interval: `0.667 (0.417 to 0.848)`."""
        found = self.interval(metric, value)
        text = number(value, digits)
        return text if found is None else f"{text} ({number(found[0], digits)} to {number(found[1], digits)})"


def read_held_out(folder: Path) -> HeldOut:
    """Of a run's folder, from its `eval_scores.parquet` and `summary.json`; what is not there, or is damaged, counts
    nothing: the accuracies then stand alone."""
    parts: dict[str, Part] = {}
    with suppress(UserError):
        parts |= _parts(folder / "eval_scores.parquet")
    with suppress(UserError):
        unseen = read_object(folder / "summary.json").get("unseen_pairs")
        if type(unseen) is int and unseen > 0:
            parts[UNSEEN_ACCURACY] = Part(unseen, unseen, "records that choose nothing")
    return HeldOut(parts)


def _parts(scores: Path) -> dict[str, Part]:
    table = read_columns(scores, {"record": KEY}, {"source": TEXT, "response": NUMBER})
    what = "responses" if "response" in table else "pairs"
    sources = table.get("source") or [""] * len(table["record"])
    rows = Counter(sources)
    records = Counter(source for source, _ in {*zip(sources, table["record"], strict=True)})
    found = {f"{ACCURACY}/{source}": Part(rows[source], records[source], what) for source in rows if source}
    if rows:
        found[ACCURACY] = Part(rows.total(), records.total(), what)
    return found
