"""A run folder as the reports read it: configuration, metrics, summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config import read_yaml
from orpo_ray.config.metrics import Direction, known_direction
from orpo_ray.errors import UserError
from orpo_ray.parsing import finite, read_lines, read_object
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.storage.rounds import whole_steps

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values, both `(points,)`; a value that was not finite is NaN."""


@dataclass(frozen=True)
class Run:
    """What a run has left behind so far; `summary` is None until it has finished."""

    folder: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    summary: dict[str, Any] | None
    events: list[tuple[str, str]]
    """When, and what happened that a person should know of."""
    warnings: tuple[str, ...] = ()
    """Of the events, those that its page begins with."""

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def last_step(self) -> int:
        return max(int(line["step"]) for line in self.lines)

    @property
    def total_steps(self) -> int | None:
        """As many as the configuration means: an epoch's steps follow from any line that has both numbers."""
        if self.summary is not None:
            return self.last_step
        train = self.section("train")
        limit, epochs = train.get("max_steps"), train.get("epochs", 1)
        if isinstance(limit, int):
            return limit
        steps, values = self.series("epoch")
        known = np.isfinite(values) & (values > 0)
        if known.any() and isinstance(epochs, int):
            return whole_steps(self.config, epochs, float(steps[known][-1] / values[known][-1]))
        return None

    def series(self, key: str) -> Series:
        """The values of one metric, over the lines that have it."""
        points = [(line["step"], finite(line[key])) for line in self.lines if key in line]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    @property
    def kept_step(self) -> int | None:
        """The evaluation whose model is in `model/`, if any is so far."""
        if self.section("train").get("keep") != "last":
            return self.best_step
        steps, _ = self.series(self.evaluated)
        return int(steps[-1]) if steps.size else None

    @property
    def rolls_out(self) -> bool:
        """Whether it trains on what the policy itself writes."""
        return bool(self.section("rollouts"))

    @property
    def evaluated(self) -> str:
        """The metric that the line of any evaluation has. Rollouts have no held-out loss."""
        return "eval_reward" if self.rolls_out else "eval_loss"

    @property
    def keep_by(self) -> str:
        """The metric that the best evaluation is told by."""
        return str(self.section("train").get("keep_by", self.evaluated))

    @property
    def keep_direction(self) -> Direction:
        mode = self.section("train").get("keep_mode")
        return mode if mode in ("min", "max") else known_direction(self.keep_by) or "min"

    @property
    def best_step(self) -> int | None:
        """The best evaluation by `keep_by`: the summary's word, else the best so far. That before the first step is of
        the model as it came, which is not kept."""
        if self.summary is not None and isinstance(self.summary.get("best_step"), int):
            return int(self.summary["best_step"])
        steps, values = self.series(self.keep_by)
        steps, values = steps[steps > 0], values[steps > 0]
        best = np.nanargmin if self.keep_direction == "min" else np.nanargmax
        return int(steps[best(values)]) if np.isfinite(values).any() else None

    def value_at(self, key: str, step: int | None) -> float | None:
        """A metric at one step, where it was written there and is finite."""
        steps, values = self.series(key)
        found = values[steps == step] if step is not None else values[:0]
        return float(found[-1]) if found.size and np.isfinite(found[-1]) else None

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration; empty where the file lacks it."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises `UserError`, naming the file, where it is no run folder, has no metrics yet, or cannot be read.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{folder}: not a folder of a run with metrics (no metrics.jsonl)")
    config = read_yaml(folder / "config.yaml")
    lines = list(read_metrics(metrics).values())
    if not lines:
        raise UserError(f"{metrics}: holds no metrics yet; try again after the first step")
    summary_file = folder / "summary.json"
    summary = None
    if summary_file.is_file():
        summary = read_object(summary_file)
    events = folder / "events.jsonl"
    return Run(folder, config, lines, summary, read_events(events), read_warnings(events))


def read_events(path: Path, *, remarks: bool = True) -> list[tuple[str, str]]:
    """When, and what happened; none where there is no such file. `remarks`: with what holds of the run at any time."""
    found = [line for line in read_lines(path).values() if remarks or not line.get("remark")] if path.is_file() else []
    return [(str(line.get("time", "")), str(line.get("event", ""))) for line in found]


def read_warnings(path: Path) -> tuple[str, ...]:
    """Of `events.jsonl` the events that are marked as warnings, each once."""
    lines = read_lines(path).values() if path.is_file() else ()
    return tuple(dict.fromkeys(str(line.get("event", "")) for line in lines if line.get("warning") is True))
