"""How many engines and scorers an evaluation runs, and what each asks of the Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import ScalingConfig
from orpo_ray.config.evaluation import EvaluationScaling
from orpo_ray.config.score import ScorersScaling
from orpo_ray.errors import UserError

_CPUS_OF_AN_ACTOR = 4  # where there are no GPUs and enough CPUs


Nodes = Sequence[tuple[float, float]]
"""CPU and GPU slots of each node of a cluster."""


@dataclass(frozen=True)
class Resources:
    generators: int
    scorers: int
    cpus: int
    """Of each actor."""
    generator_gpus: float
    """Of each engine."""
    scorer_gpus: float
    """Of each scorer that shares none."""
    gpu_memory: float | None
    """Share of a GPU's memory that an engine may take, with a scorer that shares it; None on CPUs."""
    tensor_parallel: int = 1
    """GPUs of a stage of an engine."""
    over_nodes: bool = False
    """Whether an engine's GPUs are of several nodes."""
    sharing: int = 0
    """Scorers, the first so many, that stand on a GPU of an engine's, each on one of its own."""
    scorer_memory: float = 0.0
    """Share of its memory that such a scorer may take."""

    @property
    def pipeline_parallel(self) -> int:
        """Stages of an engine."""
        return max(1, int(self.generator_gpus) // self.tensor_parallel)

    def shared_place(self, scorer: int) -> tuple[int, int] | None:
        """The engine, and which of its GPUs, that a scorer shares; both are counted from 0."""
        return (scorer % self.generators, scorer // self.generators) if scorer < self.sharing else None

    def sharers(self, engine: int) -> list[int]:
        """The scorers that stand on GPUs of an engine."""
        return list(range(engine, self.sharing, self.generators))

    def engine_memory(self, engine: int) -> float | None:
        """Share of the memory of each of its GPUs that an engine takes; None on CPUs."""
        if self.gpu_memory is None or not self.sharers(engine):
            return self.gpu_memory
        return round(self.gpu_memory - self.scorer_memory, 6)


def share_out(scaling: EvaluationScaling, nodes: Nodes, most: int, *, scoring: bool = True) -> Resources:
    """Deal the CPUs and GPUs of the cluster's nodes to engines and scorers.

    `most`: engines, and scorers, that could have something to do; `scoring`: whether scorers have. An engine has
    `tensor_parallel` times `pipeline_parallel` GPUs of one node, or of several where no node has so many; no other
    actor is parted among nodes. A scorer has a GPU that no engine takes; where there is none left it shares one of an
    engine's. Raises `UserError` where what is asked for is not there.
    """
    if _on_gpus(scaling, nodes):
        return _share_out_gpus(scaling, nodes, most, scoring=scoring)
    for key in ("tensor_parallel", "pipeline_parallel"):
        if getattr(scaling, key) > 1:
            raise UserError(f"scaling.{key}: splits a model over GPUs, and there are none")
    scorers = _asked(scaling.scorers, 1) if scoring else 0
    places = sum(int(cpus // _CPUS_OF_AN_ACTOR) for cpus, _ in nodes)
    generators = _asked(scaling.generators, min(max(1, places - scorers), most))
    share = _cpus_of_each(generators + scorers, nodes)
    if not share:
        raise UserError(
            f"scaling: {generators} generators and {scorers} scorers need a CPU each, and the cluster has "
            f"{sum(int(cpus) for cpus, _ in nodes)}"
        )
    return Resources(generators, scorers, share, 0, 0, None)


def _share_out_gpus(scaling: EvaluationScaling, nodes: Nodes, most: int, *, scoring: bool) -> Resources:
    size = scaling.tensor_parallel * scaling.pipeline_parallel
    counts = [int(gpus) for _, gpus in nodes]
    gpus, over_nodes = sum(counts), max(counts, default=0) < size
    if gpus < size:
        raise UserError(f"scaling: an engine needs {_product(scaling)} GPUs, and the cluster has {gpus}")
    room = gpus // size if over_nodes else sum(count // size for count in counts)
    # What no engine can use is for scorers; where an engine is of one GPU, a scorer takes the place of one.
    automatic = max(1, gpus // 8, gpus - room * size)
    scorers = _asked(scaling.scorers, min(automatic, most)) if scoring else 0
    beside = max(1, room - scorers) if size == 1 else room
    generators = _asked(scaling.generators, min(beside, most))
    if generators > room:
        raise UserError(
            f"scaling: {generators} generators of {_product(scaling)} GPUs need more than the {gpus} GPUs of the "
            f"cluster, which has room for {room}"
        )
    sharing = max(0, scorers - (gpus - generators * size))
    if sharing > generators * size:
        raise UserError(f"scaling: {scorers} scorers need a GPU each, and the cluster has {gpus}")
    if sharing and scaling.scorer_memory >= scaling.gpu_memory:
        raise UserError(
            f"scaling.scorer_memory ({scaling.scorer_memory:g}): leaves an engine nothing of scaling.gpu_memory "
            f"({scaling.gpu_memory:g}), and a scorer has to share its GPU"
        )
    return Resources(
        generators, scorers, 1, size, int(scorers > 0), scaling.gpu_memory, scaling.tensor_parallel, over_nodes,
        sharing, scaling.scorer_memory,
    )  # fmt: skip


def _product(scaling: EvaluationScaling) -> str:
    """GPUs of an engine, as the settings say it."""
    stages = scaling.pipeline_parallel
    return f"{scaling.tensor_parallel}" + (f" x {stages}" if stages > 1 else "")


def over_nodes(resources: Resources) -> str:
    """What is said of an engine whose GPUs are of several nodes."""
    told = f"an engine has {int(resources.generator_gpus)} GPUs of several nodes"
    if resources.pipeline_parallel > 1:
        return f"{told}: what passes between its {resources.pipeline_parallel} stages goes over the network"
    return (
        f"{told}, and every layer waits for the network: slow without InfiniBand or the like; "
        "scaling.pipeline_parallel cuts between layers alone"
    )


def scorers_alone(scaling: EvaluationScaling | ScorersScaling, nodes: Nodes, most: int) -> Resources:
    """Deal the cluster to scorers. `most`: that could have something to do. Raises `UserError` as `share_out` does."""
    on_gpus = _on_gpus(scaling, nodes)
    counts = [int(gpus if on_gpus else cpus) for cpus, gpus in nodes]
    places = sum(counts) if on_gpus else max(1, sum(count // _CPUS_OF_AN_ACTOR for count in counts))
    scorers = _asked(scaling.scorers, min(most, places))
    if scorers > sum(counts) or not any(counts):
        what = "GPU" if on_gpus else "CPU"
        raise UserError(f"scaling: {scorers} scorers need a {what} each, and the cluster has {sum(counts)}")
    if on_gpus:
        return Resources(0, scorers, 1, 0, 1, scaling.gpu_memory)
    return Resources(0, scorers, _cpus_of_each(scorers, nodes), 0, 0, None)


def _on_gpus(scaling: EvaluationScaling | ScorersScaling, nodes: Nodes) -> bool:
    return _gpus(nodes) > 0 if scaling.use_gpu == "auto" else scaling.use_gpu


def _gpus(nodes: Nodes) -> int:
    return sum(int(gpus) for _, gpus in nodes)


def _cpus_of_each(actors: int, nodes: Nodes) -> int:
    """The most CPUs that each of so many actors can have; 0: there is not one for each."""
    largest = max((int(cpus) for cpus, _ in nodes), default=0)
    shares = range(largest, 0, -1)
    return next((share for share in shares if sum(int(cpus // share) for cpus, _ in nodes) >= actors), 0)


def _asked(setting: int | str, automatic: int) -> int:
    return automatic if isinstance(setting, str) else setting


def beside(training: ScalingConfig, gpus: int) -> Resources:
    """One engine and one scorer on what a training run leaves free: a GPU that they share, or a CPU each.

    Raises `UserError` where training takes every GPU: vLLM built for GPUs does not run without.
    """
    if gpus == 0 or training.use_gpu is False:
        return Resources(1, 1, 1, 0, 0, None)
    taken = training.most_workers if uses_gpus(training, gpus) else 0
    if gpus <= taken:
        raise UserError(f"eval.win_rate: {taken} workers take all {gpus} GPUs, and it needs one beside them")
    scaling = EvaluationScaling()
    return Resources(1, 1, 1, 1, 1, scaling.gpu_memory, sharing=1, scorer_memory=scaling.scorer_memory)
