"""What is known of a sweep's trials, and what follows from it: where they stop, how they rank, the table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orpo_ray.config import SweepConfig
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.points import Outcome, Settings
from orpo_ray.tuning.stopping import Curve, early_stops, rule_of

Line = dict[str, Any]
Status = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass
class Trial:
    """One trial, as its folder tells it. What its rule makes of that is the ledger's to say."""

    index: int
    settings: Settings
    lines: dict[int, Line] = field(default_factory=dict)
    """Its evaluations, by step."""
    finished: bool = False
    failure: str = ""
    steps_run: int = 0
    """Optimizer steps that were computed, past an early stop too."""
    start: float | None = None
    """Seconds from its turn to its first step."""

    @property
    def over(self) -> bool:
        return self.finished or bool(self.failure)

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Of the evaluations of a model that has been trained, by step; NaN where not finite."""
        found = [(step, line[metric]) for step, line in sorted(self.lines.items()) if step and metric in line]
        return [(step, math.nan if value is None else float(value)) for step, value in found]


class Ledger:
    """All trials that were begun, in their order. Every answer follows from their curves, not from when they came."""

    def __init__(self, config: SweepConfig, folder: SweepFolder, total_steps: int) -> None:
        self._config = config
        self._folder = folder
        self._rule = rule_of(config, total_steps)
        self._total_steps = total_steps
        self.trials: list[Trial] = []
        self.stops: list[int | None] = []

    def begin(self, settings: Settings) -> Trial:
        """Add the next trial, with what an earlier try has left of it."""
        trial = Trial(len(self.trials), settings)
        self.trials.append(trial)
        self.refresh(trial.index)
        return trial

    def refresh(self, index: int) -> None:
        """Read what a trial's folder holds now."""
        trial, run = self.trials[index], self._folder.trial(index)
        if run.metrics.is_file():
            for text in run.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
                if text.endswith("\n"):
                    line = json.loads(text)
                    trial.steps_run = max(trial.steps_run, line["step"])
                    if "loss" not in line:  # an evaluation, or a win-rate that came later
                        trial.lines.setdefault(line["step"], {}).update(line)
        trial.finished = run.finished
        trial.start = self._folder.start(index)
        failure = self._folder.failure(index)
        if failure.is_file():
            trial.failure = json.loads(failure.read_text(encoding="utf-8"))["reason"]
        curves = [Curve(t.values(self._config.metric), t.over) for t in self.trials]
        self.stops = early_stops(curves, self._rule(), self._total_steps)

    def status(self, trial: Trial) -> Status:
        """A rule that stops a trial somewhere outweighs what became of it behind that."""
        if self.stops[trial.index] is not None:
            return "stopped"
        return "failed" if trial.failure else "finished" if trial.finished else "unfinished"

    def over(self, trial: Trial) -> bool:
        return self.status(trial) != "unfinished"

    def first_over(self) -> int:
        """How many trials, from the first on, are over without a gap."""
        return next((t.index for t in self.trials if not self.over(t)), len(self.trials))

    def curve(self, trial: Trial, metric: str) -> list[tuple[int, float]]:
        """The values that count: up to where it was stopped."""
        stop = self.stops[trial.index]
        return [(step, value) for step, value in trial.values(metric) if stop is None or step <= stop]

    def outcome(self, trial: Trial) -> Outcome | None:
        """All metrics that count at its last evaluation, where they are finite and the trial has not failed."""
        curves = {metric: self.curve(trial, metric) for metric in self._config.directions}
        if not all(curves.values()) or self.status(trial) == "failed":
            return None
        found = {metric: points[-1][1] for metric, points in curves.items()}
        return found if all(map(math.isfinite, found.values())) else None

    def value(self, trial: Trial) -> float | None:
        """Of the sweep's `metric` in its outcome."""
        found = self.outcome(trial)
        return None if found is None else found[self._config.metric]

    def steps(self, trial: Trial) -> int:
        """Up to where it was stopped, or as far as it came."""
        return self.stops[trial.index] or trial.steps_run

    def ranking(self) -> list[Trial]:
        """Trials that have a value, best first: those that came to their end, the front before the others; then the
        stopped ones, furthest first."""
        sign = -1 if self._config.mode == "max" else 1
        valued = [(trial, value) for trial in self.trials if (value := self.value(trial)) is not None]
        front = self.front()

        def key(entry: tuple[Trial, float]) -> tuple[bool, int, bool, float, int]:
            trial, value = entry
            finished = self.status(trial) == "finished"
            return not finished, 0 if finished else -self.steps(trial), trial not in front, sign * value, trial.index

        return [trial for trial, _ in sorted(valued, key=key)]

    def front(self) -> list[Trial]:
        """Those that came to their end and that no other equals in all metrics and beats in one (Pareto's front)."""
        signs = [-1 if mode == "max" else 1 for mode in self._config.directions.values()]
        finished = [trial for trial in self.trials if self.status(trial) == "finished"]
        costs = {
            trial.index: [sign * value for sign, value in zip(signs, outcome.values(), strict=True)]
            for trial in finished
            if (outcome := self.outcome(trial)) is not None
        }
        return [self.trials[index] for index, own in costs.items() if not _beaten(own, costs.values())]

    def outcomes(self, upto: int) -> Sequence[Outcome | None]:
        return [self.outcome(trial) for trial in self.trials[:upto]]

    def rows(self) -> list[Line]:
        """The table: every evaluation of every trial, up to where it was stopped. One without any has one row."""
        rows: list[Line] = []
        for trial in self.trials:
            stop = self.stops[trial.index]
            head = {"trial": trial.index, "status": self.status(trial), "reason": self._reason(trial), **trial.settings}
            lines = [line for step, line in sorted(trial.lines.items()) if stop is None or step <= stop]
            rows += ({**head, **line} for line in lines or [{"step": None}])
        return rows

    def _reason(self, trial: Trial) -> str:
        if (stop := self.stops[trial.index]) is not None:
            return f"by {self._config.scheduler} at step {stop}"
        return trial.failure


def _beaten(own: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others)
