"""Placement groups that others find again when the process that made them is lost.

Ray gives a group back at the end of its job, not of the task that made it (2.60). A pipeline's stage, or a comparison
beside training, is a task: killed, it would keep its GPUs from the next, which would wait for them for ever. So a group
says in its name whose it is. Left out: processes of other hosts, of which nobody here knows whether they live.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

from orpo_ray.alive import pids_of, started

_OWNED = "orpo_ray "


def make_group(bundles: Sequence[dict[str, float]], strategy: str) -> Any:
    """A group of this process, once those of lost ones are given back; see `ray.util.placement_group`."""
    import ray

    remove_lost_groups()
    pid = os.getpid()
    owner = {"pids_of": pids_of(), "pid": pid, "started": started(pid), "id": uuid.uuid4().hex}
    return ray.util.placement_group(list(bundles), strategy=strategy, name=_OWNED + json.dumps(owner))


def remove_lost_groups() -> None:
    """Give back what `make_group` has made in processes of this host that have ended since."""
    import ray

    for row in ray.util.placement_group_table().values():
        if row["state"] != "REMOVED" and row["name"].startswith(_OWNED) and _is_lost(row["name"]):
            try:
                group = ray.util.get_placement_group(row["name"])
            except ValueError:  # of another namespace, or somebody has been faster
                continue
            ray.util.remove_placement_group(group)


def _is_lost(name: str) -> bool:
    owner = json.loads(name.removeprefix(_OWNED))
    return pids_of() is not None and owner["pids_of"] == pids_of() and started(owner["pid"]) != owner["started"]
