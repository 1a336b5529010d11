"""What the hosts of a cluster are to have in common: folders that all of them see, and files at the same place."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from orpo_ray.cluster.contents import Stats, digest_of, digests_of_others, stats_of
from orpo_ray.errors import UserError

_PREFIX = ".seen-by-all-hosts-"
_PATIENCE = 5.0  # seconds that a network filesystem may take to show a new file
_LOOK = 0.5
_SECONDS_TO_ANSWER = 120.0  # where weights have to be hashed


class Marks(NamedTuple):
    """Of one command: files that lie in its folders, for other hosts to look for."""

    host: str
    """That made them."""
    file: str
    """Their name: a new one each time, since a network filesystem may remember for long that a name was not there."""
    folders: dict[str, str]
    """Where they lie, by the key that the configuration has for the folder."""


def this_host() -> str:
    """As messages name it: its name, and its address in the cluster where this process is connected to one."""
    ray = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    return socket.gethostname() + (f" ({ray.util.get_node_ip_address()})" if connected and ray is not None else "")


@contextmanager
def marked(folders: Mapping[str, str]) -> Iterator[Marks]:
    """While the body runs, each of `folders`, made where it is missing, has a mark.

    URLs have none, nor has a folder that cannot be written: who is to write there will say so.
    """
    name = f"{_PREFIX}{uuid.uuid4().hex}"
    marks = Marks(this_host(), name, {})
    try:
        for key, folder in folders.items():
            if "://" in folder:
                continue
            with suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
                for left in Path(folder).glob(f"{_PREFIX}*"):  # by a driver that was killed
                    left.unlink(missing_ok=True)
                (Path(folder) / name).touch()
                marks.folders[key] = folder
        yield marks
    finally:
        for folder in marks.folders.values():
            with suppress(OSError):
                (Path(folder) / name).unlink(missing_ok=True)


def unseen(marks: Marks) -> str:
    """Which of the marked folders this host does not see as the one that marked them, in a line; empty: none."""
    deadline = time.monotonic() + _PATIENCE
    for key, folder in marks.folders.items():
        while not (Path(folder) / marks.file).exists():
            if time.monotonic() > deadline:
                return not_seen(key, folder, marks.host)
            time.sleep(_LOOK)
    return ""


def not_seen(key: str, folder: str, writer: str) -> str:
    """What is said of a `folder`, which the configuration has as `key`, that is another one on this host."""
    return (
        f"{key}: {this_host()} does not see what {writer} writes to {folder}; it has to be a folder that all hosts "
        "share (NFS, a volume of ReadWriteMany), at the same place"
    )


def look(marks: Marks, paths: Mapping[str, str]) -> str:
    """What of the marked folders and of `paths` (see `absent`) this host lacks, in a line; empty: nothing."""
    return unseen(marks) or absent(paths, marks.host)


class _Answer(NamedTuple):
    """Of a node that has looked."""

    host: str
    mistake: str
    """Empty: none."""
    digests: dict[str, str]
    """Of what paths lead to there, by key, where it may be something else than on the host that asks."""


def _answer(marks: Marks, held: Mapping[str, tuple[str, Stats]]) -> _Answer:
    mistake = look(marks, {key: path for key, (path, _) in held.items()})
    return _Answer(this_host(), mistake, {} if mistake else digests_of_others(held))


def require_on_nodes(paths: Mapping[str, str], cpus: float, gpus: float, marks: Marks | None = None) -> None:
    """Have every other node of the cluster `look`: for `marks` all, for `paths` those that have room for an actor of
    `cpus` and `gpus`; files and models have to be the same there too.

    Raises `UserError`, naming the host, for the first that lacks something. One that does not answer is left to whoever
    will work there.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    held = {key: (path, stats_of(path)) for key, path in paths.items()}
    answers = []
    for node in others:
        roomy = node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_answer).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        answers.append(task.remote(marks or Marks(this_host(), "", {}), held if roomy else {}))
    own_digests: dict[str, str] = {}
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    for answer in answers:
        try:
            host, mistake, digests = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
        except RayError:
            continue
        if mistake:
            raise UserError(mistake)
        for key, digest in digests.items():
            if digest != own_digests.setdefault(key, digest_of(paths[key])):
                raise UserError(
                    f"{key}: {paths[key]} is not the same on {this_host()} and on {host}; what is named by a path has "
                    "to be the same on every host"
                )


def absent(paths: Mapping[str, str], owner: str) -> str:
    """Which of `paths`, by the key that names them, the host `owner` has and this one has not; empty: none.

    A subset (FOLDER:SUBSET) is looked for by its folder, a function (FILE.py:FUNCTION) by its file.
    """
    for key, path in paths.items():
        if not os.path.exists(path) and not os.path.exists(path.rpartition(":")[0]):
            return (
                f"{key}: {path} is there on {owner}, and not on {this_host()}; it has to be at the same place on every "
                "host, best in a folder that they share"
            )
    return ""
