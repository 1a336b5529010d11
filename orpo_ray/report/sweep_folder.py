"""A sweep's folder as its report reads it: `sweep.json`, `results.parquet`, `config.yaml`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from orpo_ray.config import read_yaml
from orpo_ray.config.space import Dimension, parse_dimension
from orpo_ray.errors import UserError

Status = Literal["finished", "stopped", "failed", "unfinished"]


class Trial(BaseModel):
    trial: int
    settings: dict[str, Any]
    status: Status
    steps: int
    """Up to where it was stopped."""
    steps_run: int
    value: float | None
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
    total_steps: int
    rungs: list[int]
    trials: list[Trial]
    ranking: list[int]
    front: list[int] = []
    """With a trade-off: the trials that no other equals in all metrics and beats in one."""
    winner: int | None
    finalists: list[Finalist]
    steps: int
    steps_run: int
    steps_of_all: int
    seconds: float
    finished: str

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
        return [(step, value) for step, value in found if value is not None and math.isfinite(value)]

    def last(self, trial: Trial, key: str) -> float | None:
        """One metric of a trial at its last evaluation that has it."""
        curve = self.curve(trial, key)
        return curve[-1][1] if curve else None


def read_sweep(folder: Path) -> Sweep:
    """Raises `UserError`, naming the file, where one is missing or unreadable."""
    numbers = read_numbers(folder)
    try:
        rows = pq.read_table(folder / "results.parquet").to_pylist()
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise UserError(f"{folder}: not a readable sweep: {error}") from None
    return Sweep(folder, numbers, rows, read_yaml(folder / "config.yaml"))


def read_numbers(folder: Path) -> Numbers:
    """What `sweep.json` says. Raises `UserError`, naming the file, where it is missing or unreadable."""
    summary = folder / "sweep.json"
    try:
        return Numbers.model_validate(json.loads(summary.read_text(encoding="utf-8")))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{summary}: {where}: {error.errors()[0]['msg']}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a readable sweep: {error}") from None
