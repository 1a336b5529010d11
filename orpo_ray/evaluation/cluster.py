"""How many engines and scorers an evaluation runs, and what each asks of the Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import ScalingConfig
from orpo_ray.config.evaluation import EvaluationScaling
from orpo_ray.config.score import ScorersScaling
from orpo_ray.errors import UserError

_CPUS_OF_AN_ACTOR = 4  # where there are no GPUs and enough CPUs
_SHARED_GPU = 0.7  # an engine's part of a GPU that it shares with the scorer


Nodes = Sequence[tuple[float, float]]
"""CPU and GPU slots of each node of a cluster."""


@dataclass(frozen=True)
class Resources:
    generators: int
    scorers: int
    cpus: int
    """Of each actor."""
    generator_gpus: float
    scorer_gpus: float
    gpu_memory: float | None
    """What an engine takes of its GPU's memory; None on CPUs."""
    tensor_parallel: int = 1
    """GPUs of an engine."""


def share_out(scaling: EvaluationScaling, nodes: Nodes, most: int, *, scoring: bool = True) -> Resources:
    """Deal the CPUs and GPUs of the cluster's nodes to engines and scorers, none of which can be parted among nodes.

    `most`: engines that could have something to do; `scoring`: whether scorers have. On GPUs an engine has
    `tensor_parallel` of them, and a cluster with a single GPU shares it. Raises `UserError` where what is asked for is
    not there.
    """
    if _on_gpus(scaling, nodes):
        return _share_out_gpus(scaling, nodes, most, scoring=scoring)
    if scaling.tensor_parallel > 1:
        raise UserError("scaling.tensor_parallel: splits a model over GPUs, and there are none")
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
    parallel, gpus = scaling.tensor_parallel, _gpus(nodes)
    largest = max((int(gpus) for _, gpus in nodes), default=0)
    if largest < parallel:
        raise UserError(
            f"scaling.tensor_parallel: an engine needs {parallel} GPUs of one node, and the largest node has {largest}"
        )
    shared = scoring and gpus == parallel == 1
    scorers = _asked(scaling.scorers, 1 if shared else max(1, gpus // 8)) if scoring else 0
    beside = _engines_beside(scorers, parallel, nodes)
    scorer_gpus = 1 - _SHARED_GPU if shared else 1 if beside > 0 else 0
    room = beside if scorer_gpus == 1 else _engines_beside(0, parallel, nodes)
    generators = _asked(scaling.generators, min(max(1, room), most))
    if generators > room:
        raise UserError(
            f"scaling: {generators} generators of {parallel} GPUs and {scorers} scorers need more than the {gpus} "
            "GPUs of the cluster"
        )
    memory = scaling.gpu_memory * (_SHARED_GPU if shared else 1)
    return Resources(
        generators, scorers, 1, _SHARED_GPU if shared else parallel, scorer_gpus, memory, parallel,
    )  # fmt: skip


def _engines_beside(scorers: int, parallel: int, nodes: Nodes) -> int:
    """How many engines, each on one node, find GPUs beside `scorers` with a GPU each, which first take what no engine
    can use."""
    counts = [int(gpus) for _, gpus in nodes]
    left_over = sum(count % parallel for count in counts)
    return sum(count // parallel for count in counts) - math.ceil(max(0, scorers - left_over) / parallel)


def scorers_alone(scaling: EvaluationScaling | ScorersScaling, nodes: Nodes, most: int) -> Resources:
    """Deal the cluster to scorers. `most`: that could have something to do. Raises `UserError` as `share_out` does."""
    on_gpus = _on_gpus(scaling, nodes)
    counts = [int(gpus if on_gpus else cpus) for cpus, gpus in nodes]
    places = sum(counts) if on_gpus else max(1, sum(count // _CPUS_OF_AN_ACTOR for count in counts))
    scorers = _asked(scaling.scorers, min(most, places))
    if scorers > sum(counts) or not any(counts):
        what = "GPU" if on_gpus else "CPU"
        raise UserError(f"scaling: {scorers} scorers need a {what} each, and the cluster has {sum(counts)}")
    return Resources(0, scorers, 1 if on_gpus else _cpus_of_each(scorers, nodes), 0, int(on_gpus), None)


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
    """One engine and one scorer on what a training run leaves free: a GPU of their own, or a CPU each.

    Raises `UserError` where training takes every GPU: vLLM built for GPUs does not run without.
    """
    if gpus == 0 or training.use_gpu is False:
        return Resources(1, 1, 1, 0, 0, None)
    taken = training.most_workers if uses_gpus(training, gpus) else 0
    if gpus <= taken:
        raise UserError(f"eval.win_rate: {taken} workers take all {gpus} GPUs, and it needs one beside them")
    return Resources(1, 1, 1, _SHARED_GPU, 1 - _SHARED_GPU, _SHARED_GPU)
