"""How many trials a cluster has room for, and what each of them has of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import SweepConfig, TrainConfig
from orpo_ray.errors import UserError

OF_A_TRIAL = {"memory": 2**20}
"""What a trial takes beside its workers. It only waits for them, and of CPUs any part would be missing to them."""


class Share(NamedTuple):
    """What each trial has of the cluster. It is told so: what is free when it begins, others may be about to take."""

    cpus: float
    """Of each worker."""
    gpus: int
    """Beside those of its workers, where it trains on rollouts: for engines and their scorer."""

    def given(self, run: TrainConfig) -> TrainConfig:
        """A trial that takes no more."""
        scaling = run.scaling.model_copy(update={"cpus_per_worker": float(self.cpus)})
        rollouts = None if run.rollouts is None else run.rollouts.model_copy(update={"gpus": self.gpus})
        return run.model_copy(update={"scaling": scaling, "rollouts": rollouts})


def cpus_of(run: TrainConfig) -> float:
    """All that a trial takes at the least."""
    return run.scaling.most_workers * run.scaling.least_cpus_per_worker + run.spare_cpus


def gpus_of(run: TrainConfig, all_gpus: int) -> float:
    """As `cpus_of`, on a cluster of `all_gpus`."""
    if not uses_gpus(run.scaling, all_gpus):
        return 0
    return run.scaling.most_workers * run.scaling.gpus_per_worker + _gpus_asked_for(run)


def _gpus_asked_for(run: TrainConfig) -> int:
    """Beside those of its workers."""
    asked = 0 if run.rollouts is None or run.rollouts.gpus == "auto" else run.rollouts.gpus
    return asked + (run.eval.win_rate is not None)


def concurrency(config: SweepConfig, run: TrainConfig, cluster: Mapping[str, float]) -> int:
    """Trials like `run` at a time on a cluster of so many `CPU` and `GPU`.

    Raises `UserError` where it has no room for one.
    """
    cpus, all_cpus, all_gpus = cpus_of(run), cluster.get("CPU", 0), cluster.get("GPU", 0)
    gpus = gpus_of(run, int(all_gpus))
    room = min(int(all_cpus / cpus), int(all_gpus / gpus) if gpus else config.number_of_trials, config.number_of_trials)
    if room < 1:
        raise UserError(
            f"train.scaling: a trial takes {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has {all_cpus:g} and "
            f"{all_gpus:g}"
        )
    return room if config.concurrency == "auto" else min(room, config.concurrency)


def gpus_beside(run: TrainConfig, at_a_time: int, all_gpus: int) -> int:
    """GPUs for the engines and the scorer of each of so many trials like `run`; 0: they take turns with training.

    What is left when all of them train is shared out. A worker of a part of a GPU counts as one of a whole: which of
    them are on the same is Ray's to say. Raises `UserError` where some are asked for and training takes none.
    """
    on_gpus = uses_gpus(run.scaling, all_gpus)
    asked = 0 if run.rollouts is None else run.rollouts.gpus
    if asked != "auto":
        if asked and not on_gpus:
            raise UserError(f"train.rollouts.gpus: {asked} are asked for beside training, which is on CPUs here")
        return asked
    if not on_gpus:
        return 0
    return max(0, all_gpus // at_a_time - run.scaling.most_workers - _gpus_asked_for(run))
