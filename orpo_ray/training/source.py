"""Where the loop's steps come from, and what a model is measured by between them: pairs that are there, or (see
`rollouts`) what the policy itself writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orpo_ray.config import TrainConfig
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.schedule import RoundSchedule, Share, StepSchedule
from orpo_ray.objectives.registry import Objective, build_objective
from orpo_ray.training.batches import MicroBatch, Work, micro_batches
from orpo_ray.training.engine import Engine
from orpo_ray.training.measuring import evaluate_both, mismatched, planned

Arrays = dict[str, NDArray[np.generic]]


class Instead(Enum):
    """What becomes of a step that is not trained."""

    END = auto()
    """It is not begun, nor any after it."""
    PASS = auto()
    """There is nothing to train on: it counts as done."""


class Source(Protocol):
    """Its methods are called on every rank, in the same order."""

    @property
    def objective(self) -> Objective: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, step: int) -> float:
        """Passes over the data that are done with `step` steps."""

    def before(self, step: int, attend: Callable[[], bool]) -> dict[str, float] | Instead:
        """Make ready what global step `step` (from 0) trains on; returns what else is said in its line.

        Where that takes long, all ranks call `attend` together now and then; where it says that the run is to end,
        returns `Instead.END`.
        """

    def micro_batches(self, start: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the global steps from `start` on, each behind those of its reference point,
        where the objective has one."""

    def evaluate(self, step: int, attend: Callable[[], bool]) -> tuple[dict[str, float], Tensor | None] | None:
        """Metrics of held-out data, `eval_*`, when `step` steps are done; and the table they were made of, where there
        is one (see `measuring.scores`). None where `attend`, called as by `before`, says that the run is to end."""

    def record(self, number: int) -> int | str:
        """What a record is called in messages."""

    def kept(self) -> dict[str, float]:
        """Numbers that a checkpoint has to keep of it."""

    def carried(self, step: int) -> Arrays:
        """What else the checkpoint of `step` has to keep of it, alike on all ranks; empty: nothing."""


def build_schedule(config: TrainConfig, data: Pairs) -> StepSchedule:
    """The global steps of a run on these pairs."""
    train = config.train
    return StepSchedule(
        len(data), train.global_batch_size, train.epochs, train.max_steps, config.seed, shares_of(config, data)
    )


def schedule_of(config: TrainConfig, data: Pairs) -> StepSchedule | RoundSchedule:
    """The global steps of a run, on pairs or on rollouts to these prompts."""
    if config.rollouts is None:
        return build_schedule(config, data)
    train = config.train
    return RoundSchedule(
        len(data), config.rollouts.prompts, train.global_batch_size, config.epochs_of_rollouts,
        train.epochs, train.max_steps, config.seed, shares_of(config, data),
    )  # fmt: skip


def shares_of(config: TrainConfig, data: Pairs) -> tuple[Share, ...]:
    """The parts that several sources have in a step; of one there are none."""
    if not isinstance(data, JoinedPairs):
        return ()
    return data.shares(config.data.train_sources, config.data.temperature, config.seed)


class PairSource:
    """Steps over pairs, in the order that the seed gives."""

    def __init__(
        self, engine: Engine, config: TrainConfig, train: Pairs, held_out: Pairs, unseen: Pairs | None = None
    ) -> None:
        """`unseen`: held-out pairs that choose nothing."""
        self.objective = build_objective(config.objective)
        self.train, self.held_out = train, held_out
        self.schedule = build_schedule(config, train)
        self._engine, self._config, self._unseen = engine, config, unseen

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def before(self, step: int, attend: Callable[[], bool]) -> dict[str, float]:
        return {}

    def micro_batches(self, start: int) -> Iterator[MicroBatch]:
        engine, config, objective, train = self._engine, self._config, self.objective, self.train

        def works() -> Iterator[Work]:
            for step in range(start, self.total_steps):
                indices = self.schedule.indices(step)
                if objective.judges_labels:
                    yield planned(engine, config, objective, mismatched(train), indices)
                yield planned(engine, config, objective, train, indices, best_alone=objective.best_alone)

        return micro_batches(works(), engine.device)

    def evaluate(self, step: int, attend: Callable[[], bool]) -> tuple[dict[str, float], Tensor]:
        return evaluate_both(self._engine, self._config, self.objective, self.held_out, self._unseen)

    def record(self, number: int) -> int | str:
        return self.train.record(number)

    def kept(self) -> dict[str, float]:
        return {}

    def carried(self, step: int) -> Arrays:
        return {}
