"""A sweep's folder as its report reads it: `sweep.json`, `results.parquet`, `config.yaml`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError, model_validator

from orpo_ray.config import read_yaml
from orpo_ray.config.space import Dimension, parse_dimension
from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, read_object
from orpo_ray.report.held_out import HeldOut, read_held_out

Status = Literal["finished", "stopped", "failed", "unfinished"]


class Trial(BaseModel):
    trial: int
    settings: dict[str, Any]
    status: Status
    steps: int
    """Up to where it was stopped."""
    steps_run: int
    total_steps: Annotated[int, Field(ge=1)] | None = None
    """Of the whole trial."""
    value: float | None
    """At `kept`."""
    kept: int | None = None
    """The step whose model it keeps, by which it is known."""
    unseen: float | None = None
    """As `value`, on held-out pairs that chose nothing."""
    start_seconds: float | None = None
    """From its turn to its first optimizer step."""
    reason: str

    @property
    def label(self) -> str:
        return f"{self.trial:03d}"


class Rate(BaseModel):
    win_rate: float
    ci95: tuple[float, float]
    p_holm: float | None
    told_apart: bool


class Finalist(Rate):
    trial: int
    behind: Rate | None = None
    """The best finalist's win-rate over this one."""


class Numbers(BaseModel):
    """What `sweep.json` says."""

    name: str
    metric: str
    mode: Literal["min", "max"]
    trade_off: dict[str, Literal["min", "max"]] = {}
    """More metrics, sought beside `metric`."""
    space: dict[str, str]
    total_steps: Annotated[int, Field(ge=1)]
    unlike_lengths: list[str] = []
    """Keys of the space by which trials see other numbers of pairs."""
    rungs: list[int]
    trials: list[Trial]
    ranking: list[int]
    front: list[int] = []
    """With a trade-off: the trials that no other equals in all metrics and beats in one."""
    winner: int | None
    flattered: float | None = None
    """By how much the winner's `value` is above its worth for having been chosen by it."""
    finalists: list[Finalist]
    steps: int
    steps_run: int
    steps_of_all: int
    seconds: float
    finished: str

    @model_validator(mode="after")
    def _speaks_of_its_own_trials(self) -> Numbers:
        for key, dimension in self.dimensions.items():
            for trial in self.trials:
                if key not in trial.settings:
                    raise ValueError(f"trial {trial.label} has no {key}")
                if dimension.numeric and type(trial.settings[key]) not in NUMBER:
                    raise ValueError(f"trial {trial.label}: {key} should be a number")
        known = {trial.trial for trial in self.trials}
        named = [*self.ranking, *self.front, *(finalist.trial for finalist in self.finalists)]
        if strange := [index for index in [*named, self.winner] if index is not None and index not in known]:
            raise ValueError(f"there is no trial {strange[0]}")
        if any(finalist.behind is None for finalist in self.finalists[1:]):
            raise ValueError("a finalist is not compared with the best")
        return self

    @property
    def dimensions(self) -> dict[str, Dimension]:
        return {key: parse_dimension(text) for key, text in self.space.items()}


@dataclass(frozen=True)
class Sweep:
    folder: Path
    numbers: Numbers
    rows: list[dict[str, Any]]
    config: dict[str, Any]

    def curve(self, trial: Trial, key: str) -> list[tuple[int, float]]:
        """Steps and values of one metric of a trial, where it has one that is finite."""
        rows = [row for row in self.rows if row["trial"] == trial.trial and row["step"] is not None]
        found = [(row["step"], row.get(key)) for row in rows]
        return [(step, value) for step, value in found if isinstance(value, NUMBER) and math.isfinite(value)]

    def kept(self, trial: Trial, key: str) -> float | None:
        """One metric of a trial at the step that it is known by; where that is not known, at its last evaluation."""
        curve = self.curve(trial, key)
        return dict(curve).get(curve[-1][0] if trial.kept is None else trial.kept) if curve else None

    def held_out(self, trial: Trial) -> HeldOut:
        """What the accuracies of a trial are of."""
        return read_held_out(self.folder / "trials" / trial.label)

    @property
    def unlike(self) -> bool:
        """Whether trials have different numbers of steps, so that the same step of two is not the same length."""
        return len({self.length(trial) for trial in self.numbers.trials}) > 1

    def length(self, trial: Trial) -> int:
        """Steps of the whole trial."""
        return trial.total_steps or self.numbers.total_steps

    def place(self, trial: Trial, step: float) -> float:
        """Where a step of a trial is drawn: at itself, or where trials are unlike at its share of the whole."""
        return step / self.length(trial) if self.unlike else step


def read_sweep(folder: Path) -> Sweep:
    """Raises `UserError`, naming the file, where one is missing or unreadable."""
    numbers = read_numbers(folder)
    return Sweep(folder, numbers, _read_rows(folder / "results.parquet"), read_yaml(folder / "config.yaml"))


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """A dict for each evaluation; `trial` and `step` are whole numbers."""
    try:
        with file.open("rb") as opened:
            table = pq.read_table(opened)
        for name in ("trial", "step"):
            if name not in table.column_names:
                raise ValueError(f"has no column {name}")
            whole = table.column(name).cast(pa.int64())
            table = table.set_column(table.column_names.index(name), name, whole)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError, OverflowError, TypeError, pa.ArrowException) as error:
        said = str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__]
        raise UserError(f"{file}: cannot be read: {said[0]}") from None
    return rows


def read_numbers(folder: Path) -> Numbers:
    """What `sweep.json` says. Raises `UserError`, naming the file, where it is missing or unreadable."""
    summary = folder / "sweep.json"
    try:
        return Numbers.model_validate(read_object(summary))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        raise UserError(f"{summary}: {where + ': ' if where else ''}{first['msg']}") from None
