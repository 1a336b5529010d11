"""Where engines and scorers of an evaluation stand: what each asks of Ray, which says which devices it has.

An engine of several GPUs, or one that shares its own with a scorer, stands in a placement group, which is its own
until its evaluation ends: whoever comes in its place, and its scorers, find the same devices, and nobody has taken one
of them meanwhile. Where scorers share them, or they are of several nodes, a bundle is a GPU: an engine of one asks for
a part of it; one of several is started by vLLM's own Ray executor, whose workers ask for as much of a bundle each. Any
other engine has all of its GPUs itself, and starts processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orpo_ray.cluster.owned_groups import make_group
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.inference.scoring import GpuShare

_SCORER = 0.3  # of a GPU that it shares; a number for Ray's books alone, which know no memory
_OVERRIDE_ON_ZERO = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Whether Ray hides all devices from an actor that asks for none; by default such an actor sees every one."""
_HIDDEN = {"CUDA_VISIBLE_DEVICES": "", _OVERRIDE_ON_ZERO: "1"}
_ANYWHERE = "DEFAULT"
"""Not within the resources of the trial of a sweep that evaluates its checkpoints, which hold none."""


class Group(NamedTuple):
    """A placement group, as Ray is asked for it."""

    bundles: list[dict[str, float]]
    strategy: str


def group_of(resources: Resources, engine: int) -> Group | None:
    """Of an engine that has one, by its number, and of the scorers beside it."""
    size = int(resources.generator_gpus)
    if resources.gpu_memory is None or (size == 1 and not resources.sharers(engine)):
        return None
    if not (resources.sharers(engine) or resources.over_nodes):
        return Group([{"GPU": float(size), "CPU": float(resources.cpus)}], "STRICT_PACK")
    bundles = [{"GPU": 1.0} for _ in range(size)]
    for place in [0, *(scorer // resources.generators for scorer in resources.sharers(engine))]:
        bundles[place]["CPU"] = bundles[place].get("CPU", 0.0) + resources.cpus
    return Group(bundles, "PACK" if resources.over_nodes else "STRICT_PACK")


def engine_options(resources: Resources, engine: int, group: Any = None) -> dict[str, Any]:
    """Of the Ray actor of an engine, but for what all share. `group`: what Ray has made of `group_of`."""
    if resources.gpu_memory is None:
        return _options(resources.cpus, 0, _HIDDEN)
    if group is None:
        return _options(resources.cpus, resources.generator_gpus)
    part = 1 - _SCORER if resources.sharers(engine) else 1.0
    if starts_workers(resources, engine):
        # The actor itself computes nothing, but has to see what kind of device its workers have.
        environment = {"VLLM_RAY_PER_WORKER_GPUS": f"{part:g}", _OVERRIDE_ON_ZERO: "0"}
        return _options(resources.cpus, 0, environment, group)
    return _options(resources.cpus, part * resources.generator_gpus, {}, group)


def starts_workers(resources: Resources, engine: int) -> bool:
    """Whether an engine's workers are Ray actors of vLLM's own, in the bundles of its group."""
    return resources.generator_gpus > 1 and bool(resources.sharers(engine) or resources.over_nodes)


def scorer_options(resources: Resources, scorer: int, group: Any = None) -> dict[str, Any]:
    """Of the Ray actor of a scorer, but for what all share. `group`: that of the engine whose GPU it shares."""
    if resources.gpu_memory is None:
        return _options(resources.cpus, 0, _HIDDEN)
    shared = resources.shared_place(scorer)
    if shared is None:
        return _options(resources.cpus, resources.scorer_gpus)
    return _options(resources.cpus, _SCORER, {}, group, shared[1])


def share_of(resources: Resources, scorer: int) -> GpuShare | None:
    """What a scorer may take of its GPU; None on CPUs."""
    whole = resources.gpu_memory
    if whole is None:
        return None
    return GpuShare(resources.scorer_memory if scorer < resources.sharing else whole, whole)


def _options(
    cpus: float, gpus: float, environment: dict[str, str] | None = None, group: Any = None, bundle: int = 0
) -> dict[str, Any]:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {
        "num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": dict(environment or {})},
        "scheduling_strategy": _ANYWHERE
        if group is None
        else PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
    }  # fmt: skip


class Places:
    """Of one pipeline: groups are made as they are needed, and go with `release`."""

    def __init__(self, resources: Resources, environment: Mapping[str, str]) -> None:
        """`environment`: variables of all actors."""
        self._resources, self._environment = resources, environment
        self._groups: dict[int, Any] = {}

    def engine(self, number: int) -> dict[str, Any]:
        """See `engine_options`."""
        return self._with_environment(engine_options(self._resources, number, self._group(number)))

    def scorer(self, number: int) -> dict[str, Any]:
        """See `scorer_options`."""
        shared = self._resources.shared_place(number)
        group = None if shared is None else self._group(shared[0])
        return self._with_environment(scorer_options(self._resources, number, group))

    def release(self) -> None:
        """Give back what groups hold. Whoever stands in one is ended."""
        import ray

        for group in self._groups.values():
            ray.util.remove_placement_group(group)
        self._groups.clear()

    def _with_environment(self, options: dict[str, Any]) -> dict[str, Any]:
        own = options["runtime_env"]["env_vars"]
        return {**options, "runtime_env": {"env_vars": {**self._environment, **own}}}

    def _group(self, engine: int) -> Any:
        """Ray makes it when there is room; until then its actors wait."""
        asked = group_of(self._resources, engine)
        if asked is not None and engine not in self._groups:
            self._groups[engine] = make_group(asked.bundles, asked.strategy)
        return self._groups.get(engine)
