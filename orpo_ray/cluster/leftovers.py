"""What Ray Train leaves of a run whose trial was stopped, or whose stage's process was lost: its placement group, with
the CPUs and GPUs in it.

Ray takes a group back once the actor and the job that made it have both ended, and the job of a sweep or of a pipeline
goes on. Ray Train has an actor that removes the group, but it asks the dashboard whether the run is alive: where there
is none, or the run was still starting, group and actor stay for ever (Ray 2.60).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.state import actors, state  # what Ray's own `placement_group_table` leaves out is who made a group
from ray._raylet import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orpo_ray.beside import beside

_SECONDS_BETWEEN_LOOKS = 1.0
_PATIENCE = 10.0  # seconds that the last runs have to end
_CLEANER = "PlacementGroupCleaner"


@contextmanager
def leftovers_removed() -> Iterator[None]:
    """While the body runs, remove what runs leave that have ended; after it, wait until nothing of them is left."""

    def look(over: threading.Event) -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            remove_leftovers()

    try:
        with beside(look):
            yield
    finally:
        deadline = time.monotonic() + _PATIENCE
        while remove_leftovers() and time.monotonic() < deadline:
            time.sleep(0.2)


def remove_leftovers() -> int:
    """Remove the groups of this job whose makers have ended; how many groups of runs there were, ended or not."""
    job = ray.get_runtime_context().get_job_id()
    groups = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    of_runs = [group for group in groups if group.creator_job_id.hex() == job and _of_a_run(group)]
    at_work = {key: actor for key, actor in actors().items() if actor["JobID"] == job and actor["State"] != "DEAD"}
    for group in of_runs:
        # Not by its `creator_actor_dead`, which stays false where the maker ended while the group was being made.
        if group.creator_actor_id.hex() not in at_work:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
    _end_cleaners(list(at_work.values()))
    return len(of_runs)


def _of_a_run(group: PlacementGroupTableData) -> bool:
    """Whether it is there, and was made by an actor, as Ray Train's are; Ray Tune's are the driver's."""
    made_by_an_actor = group.creator_actor_id.strip(b"\xff") != b""
    return bool(made_by_an_actor and group.state != PlacementGroupTableData.REMOVED)


def _end_cleaners(at_work: list[dict[str, Any]]) -> None:
    """End those actors on this machine, whose run has ended. `at_work`: the job's actors that have not."""
    here = ray.get_runtime_context().get_node_id()
    addresses = [actor["Address"] for actor in at_work]
    for actor in at_work:
        started_here = actor["State"] == "ALIVE" and actor["Address"]["NodeID"] == here
        if actor["ActorClassName"] == _CLEANER and started_here and actor["OwnerAddress"] not in addresses:
            with suppress(ProcessLookupError):
                os.kill(actor["Pid"], signal.SIGKILL)
