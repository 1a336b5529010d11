"""What a training run's workers take of a cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from orpo_ray.cluster.connection import connect, is_own
from orpo_ray.config import ScalingConfig
from orpo_ray.errors import UserError

_MOST_CPUS_BESIDE_A_GPU = 4  # one packs batches, one writes checkpoints; the rest is for data and the system


def cluster_nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each node of the cluster that this process is connected to; of this machine no more CPUs than it
    has, though its cluster may have more places."""
    import ray

    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            cpus, gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
            here = node["NodeManagerHostname"] == socket.gethostname()
            nodes.append((min(cpus, os.cpu_count() or 1) if here else cpus, gpus))
    return nodes


def uses_gpus(scaling: ScalingConfig, gpus: int) -> bool:
    """Whether the workers of a training run take GPUs on a cluster that has `gpus` of them."""
    return _suffice(scaling, gpus) if scaling.use_gpu == "auto" else scaling.use_gpu


def _suffice(scaling: ScalingConfig, gpus: int) -> bool:
    return gpus >= scaling.fewest_workers * scaling.gpus_per_worker


def require_gpus(scaling: ScalingConfig, cpus: int) -> None:
    """Raise `UserError` where `scaling.use_gpu` is true, and this machine, whose own cluster never grows, has too few
    GPUs: Ray would wait for ever. Called before anything long; connects with `cpus`, as `connect` does."""
    if scaling.use_gpu is not True:
        return
    connect(cpus)
    here = sum(int(gpus) for _, gpus in cluster_nodes())
    if is_own() and not _suffice(scaling, here):
        workers = scaling.fewest_workers
        raise UserError(
            f"scaling.use_gpu: {workers} worker{'s' * (workers > 1)} with a GPU each, and this machine has {here}; set "
            "RAY_ADDRESS to a cluster that has them, or scaling.use_gpu=false"
        )


def too_few_gpus(scaling: ScalingConfig, gpus: int) -> str:
    """What is said where `scaling.use_gpu` is `auto`, and GPUs stay idle since there is not one for each worker."""
    if scaling.use_gpu != "auto" or not gpus or uses_gpus(scaling, gpus):
        return ""
    return (
        f"trains on CPUs: the cluster has {gpus} GPU{'s' * (gpus > 1)} for {scaling.fewest_workers} workers; "
        f"scaling.num_workers={gpus} uses them, scaling.use_gpu=true waits for more"
    )


def cpus_of_a_worker(scaling: ScalingConfig, nodes: Sequence[tuple[float, float]], *, spare: int = 0) -> float:
    """`scaling.cpus_per_worker`, where it is `auto` for a cluster whose `nodes` have so many `(CPUs, GPUs)`.

    Without GPUs the most that each of all workers can have, when `spare` CPUs are left to others (issue 14); never
    less than 1. Beside a GPU a few.
    """
    if scaling.cpus_per_worker != "auto":
        return scaling.cpus_per_worker
    if uses_gpus(scaling, int(sum(gpus for _, gpus in nodes))):
        beside = [cpus * scaling.gpus_per_worker / gpus for cpus, gpus in nodes if gpus]
        return max(1, min(_MOST_CPUS_BESIDE_A_GPU, int(min(beside)) - 1))
    most, all_cpus = scaling.most_workers, sum(int(cpus) for cpus, _ in nodes)
    for share in range(int(max((cpus for cpus, _ in nodes), default=1)), 1, -1):
        if sum(int(cpus // share) for cpus, _ in nodes) >= most and all_cpus - most * share >= spare:
            return share
    return 1
