"""What a graph of stages will take, before it begins: steps, hours, disk, and how long all of it where as much runs at
a time as the cluster holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from orpo_ray.config import SweepConfig, TrainConfig
from orpo_ray.costs.device import Cores, Device, Gpus
from orpo_ray.paper.spent import seconds_spent
from orpo_ray.paper.work import Work, Works, on_gpus
from orpo_ray.stages.graph import Graph, StageConfig
from orpo_ray.stages.progress import Progress
from orpo_ray.stages.room import Nodes, Room, room_for, room_of

_ASSUMED_NODE = (104.0, 8.0)
"""CPUs and GPUs of a node where none is here: a DGX H100 has 112 cores; a few are left to the system."""


class Place(Protocol):
    """Where a stage stands; empty where it has no such part. See `paper.stages.Place`."""

    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def seed(self) -> int | None: ...


class Stages(Protocol):
    """A paper's, or anything else's that has stages in places."""

    @property
    def graph(self) -> Graph: ...
    @property
    def places(self) -> Mapping[str, Place]: ...


@dataclass(frozen=True)
class PlannedStage:
    label: str
    needs: tuple[str, ...]
    place: Place | None
    work: Work
    room: Room
    on_gpus: bool
    done: bool
    spent: float | None
    """Seconds that it took, where it is finished and its folder says so."""

    @property
    def seconds(self) -> float | None:
        """Predicted; None: nobody knows."""
        return self.work.seconds

    @property
    def hours(self) -> float | None:
        """Of GPUs, or of cores where it takes none."""
        return None if self.seconds is None else self.seconds * self.units / 3600

    @property
    def units(self) -> float:
        return self.room.gpus if self.on_gpus else self.room.cpus


@dataclass(frozen=True)
class Plan:
    graph: Graph
    stages: dict[str, PlannedStage]
    """By label, in order."""
    nodes: Nodes
    """Of the cluster that it is planned for."""
    devices: dict[str, Device]
    """By kind, `CPU` or `GPU`, those that stages take."""
    assumed_nodes: bool
    """Whether there are no such GPUs here."""

    @property
    def usual(self) -> dict[str, float]:
        """By label, what each takes; of what nobody knows, the mean of the others."""
        known = [stage.seconds for stage in self.stages.values() if stage.seconds is not None]
        mean = sum(known) / len(known) if known else 1.0
        return {label: mean if stage.seconds is None else stage.seconds for label, stage in self.stages.items()}

    @property
    def left(self) -> list[PlannedStage]:
        return [stage for stage in self.stages.values() if not stage.done]

    @property
    def notes(self) -> list[str]:
        """What was assumed, each once."""
        return list(dict.fromkeys(note for stage in self.stages.values() for note in stage.work.notes))

    def elapsed(self, *, done: Iterable[str] = ()) -> float:
        """Seconds from the beginning to the end of all but `done`, in the order in which stages would begin."""
        progress = Progress(self.graph, set(done))
        free, now, running = room_of(self.nodes), 0.0, dict[str, float]()
        while True:
            for stage in progress.ready(set(running)):
                planned = self.stages[stage.label]
                if free.holds(planned.room):
                    free -= planned.room
                    running[stage.label] = now + self.usual[stage.label]
            if not running:
                return now
            ended = min(running, key=lambda label: running[label])
            now = running.pop(ended)
            free += self.stages[ended].room
            progress.end(ended, "")

    def critical_path(self, *, done: Iterable[str] = ()) -> tuple[list[str], float]:
        """Labels of the longest chain of stages that wait for each other, and its seconds: no cluster is faster."""
        behind, usual = set(done), self.usual
        longest: dict[str, tuple[float, list[str]]] = {}
        for label, stage in self.stages.items():
            before = max((longest[need] for need in stage.needs), default=(0.0, []), key=lambda one: one[0])
            own = [] if label in behind else [label]
            longest[label] = (before[0] + (usual[label] if own else 0.0), [*before[1], *own])
        seconds, labels = max(longest.values(), default=(0.0, []), key=lambda one: one[0])
        return labels, seconds


def plan_of(
    stages: Stages,
    finished: Iterable[str] = (),
    *,
    nodes: Nodes | None = None,
    devices: Mapping[str, Device] | None = None,
) -> Plan:
    """The plan of all `stages`, of which those labelled `finished` are done.

    `nodes`: of the cluster; default: this machine, or, where a stage wants GPUs that are not here, nodes of eight.
    `devices`: by kind; default: an H100 by its published figures, and this machine's cores, measured for a second.
    Starts nothing and downloads nothing. Data that are here are counted, by way of the cache that runs read.
    Raises `UserError` where such data cannot be read.
    """
    return plan_graph(stages.graph, stages.places, finished, nodes=nodes, devices=devices)


def plan_graph(
    graph: Graph, places: Mapping[str, Place], finished: Iterable[str] = (), *, nodes: Nodes | None = None,
    devices: Mapping[str, Device] | None = None,
) -> Plan:  # fmt: skip
    """As `plan_of`, of any graph; `places`: of stages that have one, by label."""
    here = _here()
    assumed = nodes is None and _wanted_gpus(graph) > here[0][1]
    found = nodes or (_nodes_for(_wanted_gpus(graph)) if assumed else here)
    whole, done = room_of(found), set(finished)
    takes_gpus = {stage.label: bool(whole.gpus) and on_gpus(stage.config, whole.gpus) for stage in graph}
    kinds = {"GPU" if takes else "CPU" for takes in takes_gpus.values()}
    given = dict(devices or {})
    if "GPU" in kinds:
        given.setdefault("GPU", Gpus())
    if "CPU" in kinds and "CPU" not in given:
        given["CPU"] = Cores.measured()
    works = Works(graph, found, given)
    planned: dict[str, PlannedStage] = {}
    for stage in graph:
        room = room_for(stage.config, found)
        ended = stage.label in done
        planned[stage.label] = PlannedStage(
            stage.label, stage.needs, places.get(stage.label), works.of(stage.label, room), room,
            takes_gpus[stage.label], ended, seconds_spent(stage) if ended else None,
        )  # fmt: skip
    return Plan(graph, planned, found, {kind: given[kind] for kind in sorted(kinds)}, assumed)


def _here() -> Nodes:
    return [(float(os.cpu_count() or 1), float(torch.cuda.device_count()))]


def _wanted_gpus(graph: Graph) -> float:
    """Those without which the largest stage cannot run."""
    return max((_asks_for(stage.config) for stage in graph), default=0.0)


def _asks_for(config: StageConfig) -> float:
    if isinstance(config, TrainConfig):
        scaling = config.scaling
        return scaling.fewest_workers * scaling.gpus_per_worker if scaling.use_gpu is True else 0.0
    if isinstance(config, SweepConfig):
        return _asks_for(config.training(config.first_point, config.name, config.storage))
    scaling_of = config.scaling
    return scaling_of.tensor_parallel * scaling_of.pipeline_parallel if scaling_of.use_gpu is True else 0.0


def _nodes_for(gpus: float) -> Nodes:
    return [_ASSUMED_NODE] * max(1, -(-int(gpus) // int(_ASSUMED_NODE[1])))
