"""Groups of workers of training runs that Ray has found no room for, as `waiting` says them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from orpo_ray.cluster.waiting import Waiting, node_places, places


def groups_without_room() -> tuple[list[Waiting], int]:
    """Of the job of this process: the workers of groups that have no place, by what each asks for; and how many groups
    have theirs."""
    import ray
    from ray._private.state import state  # Ray's `placement_group_table` does not say whose a group is
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group

    job = ray.get_runtime_context().get_job_id()
    groups = map(Group.FromString, state._connect_and_get_accessor().get_placement_group_table())
    wanted: Counter[tuple[float, float]] = Counter()
    together: Counter[tuple[float, float]] = Counter()
    placed = 0
    for group in groups:
        asked = [(bundle.unit_resources.get("CPU", 0), bundle.unit_resources.get("GPU", 0)) for bundle in group.bundles]
        if group.creator_job_id.hex() != job or not any(map(any, asked)):  # Ray Tune's ask for neither
            continue
        placed += group.state == Group.CREATED
        if group.state in (Group.PENDING, Group.RESCHEDULING):
            wanted.update(asked)
            together |= Counter(asked)  # of the largest
    return [Waiting(_workers(count), *asked, together[asked]) for asked, count in wanted.items()], placed


def waiting_workers(workers: int, cpus: float, gpus: float) -> Callable[[], Sequence[Waiting]]:
    """For `waiting.saying_what_waits`, of a run alone in its job: of `workers` at the least, each asking for `cpus` and
    `gpus`.

    Ray Train takes its request back and makes it anew every minute, and makes none while an elastic run has too little
    room: so what has waited still does until a group has its place. In the process of a trial nothing waits: its sweep
    speaks of all of them.
    """
    import ray

    if ray.get_runtime_context().get_actor_id() is not None:
        return lambda: ()
    last: Sequence[Waiting] = ()

    def waiting() -> Sequence[Waiting]:
        nonlocal last
        found, placed = groups_without_room()
        if found or placed:
            last = found
        elif not last and places(node_places(), cpus, gpus) < workers:
            last = [Waiting(_workers(workers), cpus, gpus, workers)]
        return last

    return waiting


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"
