"""What is known of a sweep's trials, and what follows from it: where they stop, how they rank, the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from orpo_ray.config import SweepConfig
from orpo_ray.config.metrics import of_unseen
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.tuning.folder import Failure, SweepFolder
from orpo_ray.tuning.points import Ending, Outcome, Settings
from orpo_ray.tuning.selection import flattery
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
    total_steps: int = 0
    finished: bool = False
    kept: int | None = None
    """The step of its best model, as its summary has it."""
    failure: str = ""
    diverged: bool = False
    """Whether it failed since its loss stopped being finite."""
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

    def __init__(
        self,
        config: SweepConfig,
        folder: SweepFolder,
        total_steps: int,
        steps_of: Callable[[Settings], int] | None = None,
    ) -> None:
        """`total_steps`: of a trial; `steps_of`: of one with these settings, where that depends on them."""
        self._config = config
        self._folder = folder
        self._steps_of = steps_of or (lambda settings: total_steps)
        self._by_last = config.training(config.first_point, config.name, config.storage).train.keep == "last"
        self._rule = rule_of(config, total_steps)
        self._total_steps = total_steps
        self.trials: list[Trial] = []
        self.stops: list[int | None] = []

    def begin(self, settings: Settings) -> Trial:
        """Add the next trial, with what an earlier try has left of it."""
        trial = Trial(len(self.trials), settings, total_steps=self._steps_of(settings))
        self.trials.append(trial)
        self.refresh(trial.index)
        return trial

    def refresh(self, index: int) -> None:
        """Read what a trial's folder holds now. Raises `UserError`, naming the file, where that cannot be done."""
        trial = self.trials[index]
        lines, trial.start, failure, trial.kept = left_by(self._folder, index, self._config)
        for line in lines:
            trial.steps_run = max(trial.steps_run, line["step"])
            if "loss" not in line:  # an evaluation, or a win-rate that came later
                trial.lines.setdefault(line["step"], {}).update(line)
        trial.finished = self._folder.trial(index).finished
        trial.failure, trial.diverged = failure or (trial.failure, trial.diverged)
        curves = [Curve(t.values(self._config.metric), t.over, t.total_steps) for t in self.trials]
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

    def kept(self, trial: Trial) -> int | None:
        """The step that a trial is known by, up to where it was stopped: that whose model it keeps.

        The best by `metric`, the first of several; or the last that has all metrics, where trials keep their last
        models.
        """
        curves = [self.curve(trial, metric) for metric in self._config.directions]
        if self._by_last:
            return max(set.intersection(*({step for step, _ in points} for points in curves)), default=None)
        finite = [(self._cost(value), step) for step, value in curves[0] if math.isfinite(value)]
        best = min(finite)[1] if finite else None
        if self.status(trial) == "finished" and trial.kept in [step for _, step in finite]:
            return trial.kept  # another than the best, where there was no room for that one's model
        return best

    def outcome(self, trial: Trial) -> Outcome | None:
        """All metrics that count at the step it is known by, where they are finite and the trial has not failed."""
        step = self.kept(trial)
        if step is None or self.status(trial) == "failed":
            return None
        found = {metric: dict(trial.values(metric)).get(step, math.nan) for metric in self._config.directions}
        return found if all(map(math.isfinite, found.values())) else None

    def unseen(self, trial: Trial) -> float | None:
        """As `value`, over the held-out pairs that choose nothing; None too where the metric is not of such pairs."""
        step, metric = self.kept(trial), of_unseen(self._config.metric)
        if self.value(trial) is None or step is None:
            return None
        found = dict(trial.values(metric)).get(step, math.nan)
        return found if math.isfinite(found) else None

    def flattered(self, winner: Trial) -> float | None:
        """By how much `value` of the best of those that came to their end is above its worth, for having been chosen
        by it; below 0 where lower is better. None where that is not known of two or more."""
        found = {
            trial.index: (value, other)
            for trial in self.trials
            if self.status(trial) == "finished"
            and (value := self.value(trial)) is not None
            and (other := self.unseen(trial)) is not None
        }
        if winner.index not in found or len(found) < 2:
            return None
        ranked, unseen = ([pair[side] for pair in found.values()] for side in (0, 1))
        return flattery(ranked, unseen, list(found).index(winner.index))

    def _cost(self, value: float) -> float:
        return value if self._config.mode == "min" else -value

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
        valued = [(trial, value) for trial in self.trials if (value := self.value(trial)) is not None]
        front = self.front()

        def key(entry: tuple[Trial, float]) -> tuple[bool, float, bool, float, int]:
            trial, value = entry
            finished = self.status(trial) == "finished"
            far = 0 if finished else -self.steps(trial) / trial.total_steps
            return not finished, far, trial not in front, self._cost(value), trial.index

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

    def outcomes(self, upto: int) -> Sequence[Outcome | Ending]:
        """Of the first trials, which are over."""
        return [self.outcome(trial) or self._ending(trial) for trial in self.trials[:upto]]

    def _ending(self, trial: Trial) -> Ending:
        """Of one without an outcome: an evaluation that is not finite is the settings' fault, as a loss is."""
        values = [value for metric in self._config.directions for _, value in self.curve(trial, metric)]
        failed = self.status(trial) == "failed"
        return "diverged" if trial.diverged or (not failed and not all(map(math.isfinite, values))) else "lost"

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


class Left(NamedTuple):
    """What a trial has left in its folder."""

    lines: list[Line]
    start: float | None
    failure: Failure | None
    kept: int | None


def left_by(folder: SweepFolder, index: int, config: SweepConfig) -> Left:
    """Of trial `index`. Raises `UserError`, naming the file, where one cannot be read."""
    metrics = folder.trial(index).metrics
    numbers = [*config.directions, of_unseen(config.metric)]
    lines = list(read_metrics(metrics, numbers).values()) if metrics.is_file() else []
    return Left(lines, folder.start(index), folder.failed(index), folder.kept_step(index))


def _beaten(own: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others)
