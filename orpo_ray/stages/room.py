"""What a stage takes of a cluster, so that as many run at a time as it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import EvaluationConfig, TrainConfig
from orpo_ray.stages.graph import StageConfig

Nodes = Sequence[tuple[float, float]]
"""CPUs and GPUs of each node of a cluster."""


@dataclass(frozen=True)
class Room:
    cpus: float
    gpus: float

    def holds(self, other: Room) -> bool:
        return other.cpus <= self.cpus and other.gpus <= self.gpus

    def __add__(self, other: Room) -> Room:
        return Room(self.cpus + other.cpus, self.gpus + other.gpus)

    def __sub__(self, other: Room) -> Room:
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)


def room_of(nodes: Nodes) -> Room:
    return Room(sum(int(cpus) for cpus, _ in nodes), sum(int(gpus) for _, gpus in nodes))


def room_for(config: StageConfig, nodes: Nodes) -> Room:
    """What a stage takes of a cluster of these nodes; all of it, where its configuration leaves that open.

    The same at every try, whatever else runs: with another number of threads a sum on CPUs has other bits.
    """
    whole = room_of(nodes)
    asked = _training(config, whole) if isinstance(config, TrainConfig) else _evaluation(config, whole)
    return whole if asked is None or not whole.holds(asked) else asked


def _training(config: TrainConfig, whole: Room) -> Room | None:
    scaling, gpus = config.scaling, int(whole.gpus)
    if uses_gpus(scaling, gpus):
        if config.rollouts is not None and config.rollouts.gpus == "auto":
            return None
        beside = config.rollouts.gpus if config.rollouts is not None else 0
        assert isinstance(beside, int)
        cpus = 1 if scaling.cpus_per_worker == "auto" else scaling.cpus_per_worker
        workers = scaling.most_workers
        return Room(workers * cpus, workers * scaling.gpus_per_worker + beside + bool(config.eval.win_rate))
    if scaling.cpus_per_worker == "auto":
        return None
    # Those who write and score for a policy take turns with its workers, in the threads of these.
    return Room(scaling.most_workers * scaling.cpus_per_worker + config.spare_cpus, 0)


def _evaluation(config: StageConfig, whole: Room) -> Room | None:
    """Of CPUs its actors share all; of GPUs it takes what it asks for."""
    if not isinstance(config, EvaluationConfig) or not whole.gpus:
        return None
    scaling = config.scaling
    if isinstance(scaling.generators, str) or isinstance(scaling.scorers, str):
        return None
    gpus = scaling.tensor_parallel * scaling.pipeline_parallel
    return Room(scaling.generators + scaling.scorers, scaling.generators * gpus + scaling.scorers)
