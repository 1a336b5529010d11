"""How many trials a cluster has room for."""

from __future__ import annotations

from collections.abc import Mapping

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import SweepConfig, TrainConfig
from orpo_ray.errors import UserError

OF_A_TRIAL = {"memory": 2**20}
"""What a trial takes beside its workers. It only waits for them, and of CPUs any part would be missing to them."""


def cpus_of(run: TrainConfig) -> float:
    """All that a trial takes at the least."""
    return run.scaling.most_workers * run.scaling.least_cpus_per_worker + run.spare_cpus


def concurrency(config: SweepConfig, run: TrainConfig, cluster: Mapping[str, float]) -> int:
    """Trials like `run` at a time on a cluster of so many `CPU` and `GPU`.

    Raises `UserError` where it has no room for one.
    """
    cpus, all_cpus, all_gpus = cpus_of(run), cluster.get("CPU", 0), cluster.get("GPU", 0)
    gpus = run.scaling.most_workers * run.scaling.gpus_per_worker if uses_gpus(run.scaling, int(all_gpus)) else 0
    room = min(int(all_cpus / cpus), int(all_gpus / gpus) if gpus else config.number_of_trials, config.number_of_trials)
    if room < 1:
        raise UserError(
            f"train.scaling: a trial takes {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has {all_cpus:g} and "
            f"{all_gpus:g}"
        )
    return room if config.concurrency == "auto" else min(room, config.concurrency)
