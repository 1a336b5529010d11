"""How many engines and scorers an evaluation runs, and what each asks of the Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import ScalingConfig
from orpo_ray.config.evaluation import EvaluationScaling
from orpo_ray.config.score import ScorersScaling
from orpo_ray.errors import UserError

_CPUS_OF_AN_ACTOR = 4  # where there are no GPUs and enough CPUs
_SHARED_GPU = 0.7  # an engine's part of a GPU that it shares with the scorer


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


def share_out(scaling: EvaluationScaling, cpus: int, gpus: int, most: int) -> Resources:
    """Deal the cluster's CPUs and GPUs to engines and scorers.

    `most`: engines that could have something to do. On GPUs an engine has `tensor_parallel` of them, and a cluster
    with a single GPU shares it. Raises `UserError` where what is asked for is not there.
    """
    use_gpu = gpus > 0 if scaling.use_gpu == "auto" else scaling.use_gpu
    if use_gpu:
        return _on_gpus(scaling, cpus, gpus, most)
    if scaling.tensor_parallel > 1:
        raise UserError("scaling.tensor_parallel: splits a model over GPUs, and there are none")
    scorers = _asked(scaling.scorers, 1)
    generators = _asked(scaling.generators, min(max(1, cpus // _CPUS_OF_AN_ACTOR - scorers), most))
    if generators + scorers > cpus:
        raise UserError(
            f"scaling: {generators} generators and {scorers} scorers need a CPU each, and the cluster has {cpus}"
        )
    return Resources(generators, scorers, max(1, cpus // (generators + scorers)), 0, 0, None)


def _on_gpus(scaling: EvaluationScaling, cpus: int, gpus: int, most: int) -> Resources:
    parallel = scaling.tensor_parallel
    if gpus < parallel:
        raise UserError(f"scaling.tensor_parallel: an engine needs {parallel} GPUs, and the cluster has {gpus}")
    shared = gpus == parallel == 1
    scorers = _asked(scaling.scorers, 1 if shared else max(1, gpus // 8))
    scorer_gpus = 1 - _SHARED_GPU if shared else 1 if gpus >= parallel + scorers else 0
    free = gpus if shared or scorer_gpus == 0 else gpus - scorers
    generators = _asked(scaling.generators, min(max(1, free // parallel), most))
    if generators * parallel + (0 if shared else scorers * scorer_gpus) > gpus:
        raise UserError(
            f"scaling: {generators} generators of {parallel} GPUs and {scorers} scorers need more than the {gpus} "
            "GPUs of the cluster"
        )
    memory = scaling.gpu_memory * (_SHARED_GPU if shared else 1)
    return Resources(
        generators, scorers, max(1, cpus // (generators + scorers)) if cpus < gpus else 1,
        _SHARED_GPU if shared else parallel, scorer_gpus, memory, parallel,
    )  # fmt: skip


def scorers_alone(scaling: ScorersScaling, cpus: int, gpus: int, most: int) -> Resources:
    """Deal the cluster to scorers. `most`: that could have something to do. Raises `UserError` as `share_out` does."""
    on_gpus = gpus > 0 if scaling.use_gpu == "auto" else scaling.use_gpu
    room = gpus if on_gpus else cpus
    scorers = _asked(scaling.scorers, min(most, room if on_gpus else max(1, cpus // _CPUS_OF_AN_ACTOR)))
    if scorers > room or room == 0:
        what = "GPU" if on_gpus else "CPU"
        raise UserError(f"scaling: {scorers} scorers need a {what} each, and the cluster has {room}")
    return Resources(0, scorers, max(1, cpus // scorers) if not on_gpus or cpus < gpus else 1, 0, int(on_gpus), None)


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
