"""What Ray Train's controller says in `events.jsonl` of workers that were lost, before it starts the group again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from orpo_ray.cluster.hosts import this_host
from orpo_ray.errors import last_line_of
from orpo_ray.storage.run_folder import RunFolder

_LONGEST = 400  # characters of a reason
_OF_WORKER = re.compile(r"hostname='(?P<name>[^']*)'.*?node_ip='(?P<address>[^']*)'", re.DOTALL)
"""In what Ray Train says of one that does not answer."""
_NODE_IS_GONE = "its node has died"
_PEER = re.compile(r"gloo.*\[(?:::ffff:)?(?P<address>[0-9A-Fa-f:.]+)\]:\d+", re.DOTALL)
"""In what gloo says of a connection: `[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711`."""
_ADVICE = " Some common causes include"


class LostWorkers(UserCallback):  # type: ignore[misc]
    """Notes why a group ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:
        RunFolder(self._folder).note(reason({r: str(error) for r, error in worker_exceptions.items()}, this_host()))


def lost_connection(error: Exception, here: str) -> str:
    """Which two hosts an error of a collective is about, in a line; empty: it is about something else."""
    found = _PEER.search(str(error))
    return f"the connection between {here} and {found['address']} is lost: {error}" if found else ""


def reason(errors: Mapping[int, str], here: str) -> str:
    """One line on what a group ends of. `errors`: of its workers, by rank; `here`: the host of the controller.

    Of several a worker that has ended counts before one that has raised: the latter often died of the former's death.
    """
    found = {rank: _OF_WORKER.search(error) for rank, error in errors.items()}
    rank = min(errors, key=lambda rank: (found[rank] is None, rank))
    worker, error = found[rank], errors[rank].partition(_ADVICE)[0]
    told = last_line_of(error)[:_LONGEST] or "it gave no reason"
    who = f"rank {rank}" + (f" and {len(errors) - 1} more" if len(errors) > 1 else "")
    if worker is None:
        return f"{who} failed: {told}"
    host = f"{worker['name']} ({worker['address']})"
    if _NODE_IS_GONE in error:
        return f"the connection between {here} and {host} is lost, and {who} with it: {told}"
    return f"{who} on {host} is lost: {told}"
