"""Say what of a run has not started for want of room: Ray itself waits for ever, without a word."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from orpo_ray.beside import beside

SECONDS = 30.0
"""For how long something waits before that is said; then again whenever it has waited for twice as long."""
_POLL = 1.0  # seconds


class Waiting(NamedTuple):
    """Actors or workers of one kind that have no place yet."""

    what: str
    """With their number, as a line names them: `2 of 3 vLLM engines`."""
    cpus: float
    """That each asks for."""
    gpus: float = 0
    together: int = 1
    """How many of them need their places at the same time, with those that have theirs."""


def node_places() -> list[tuple[float, float]]:
    """CPU and GPU slots of each node that is alive, free or not, of the cluster that this process is connected to."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def waits_for_room(actor: Any) -> bool:
    """Whether Ray has found no node for an actor yet. One that is at work in its `__init__` has its node."""
    from ray._private.state import actors

    # Known from the moment on that its worker is; the address alone names the owner's node before that.
    return bool(actors(actor._actor_id.hex()).get("Pid", 0) == 0)


def what_waits(waiting: Sequence[Waiting], nodes: Sequence[tuple[float, float]], seconds: float) -> str:
    """One line on what has not started for `seconds`, what it asks for, and what the largest of `nodes` has, or all."""
    asked = " and ".join(f"{each.what} ({_amount(each.cpus, each.gpus)} each)" for each in waiting)
    wants_gpus = any(each.gpus for each in waiting)
    largest = max(nodes, key=lambda node: node[::-1] if wants_gpus else node, default=(0.0, 0.0))
    never = any(all(cpus < each.cpus or gpus < each.gpus for cpus, gpus in nodes) for each in waiting)
    why = "so others hold what is missing"
    if never:
        why = "so no node can hold that"
    elif small := next((each for each in waiting if places(nodes, each.cpus, each.gpus) < each.together), None):
        why = f"and all have places for {places(nodes, small.cpus, small.gpus)} of {small.together}"
    return (
        f"not started for {seconds:.0f} s, for want of room: {asked}; the largest of {len(nodes)} "
        f"node{'s' * (len(nodes) != 1)} has {_amount(*largest)}, {why}"
    )


def places(nodes: Sequence[tuple[float, float]], cpus: float, gpus: float) -> int:
    """Actors or workers that ask for `cpus` and `gpus` each, and are at home on `nodes` of so many `(CPUs, GPUs)`."""
    return sum(int(min(own // asked for own, asked in zip(node, (cpus, gpus), strict=True) if asked)) for node in nodes)


@contextmanager
def saying_what_waits(
    waiting: Callable[[], Sequence[Waiting]], say: Callable[[str], None], *, seconds: float = SECONDS
) -> Iterator[None]:
    """While the body runs: `say` (see `what_waits`) what has been waiting for `seconds` and more.

    `waiting` is asked every second, in a thread; nothing: all has its place. A cluster that does not answer any more is
    for the body to notice.
    """
    with beside(partial(_watch, waiting, say, seconds)):
        yield


def _watch(
    waiting: Callable[[], Sequence[Waiting]], say: Callable[[str], None], seconds: float, over: threading.Event
) -> None:
    from ray.exceptions import RayError

    waited, said = 0.0, 0.0
    poll = min(_POLL, seconds)
    while not over.wait(poll):
        try:
            found = waiting()
            waited, said = (waited + poll, said) if found else (0.0, 0.0)
            if waited >= max(seconds, 2 * said):
                said = waited
                say(what_waits(found, node_places(), waited))
        except (RayError, RuntimeError, ValueError):
            return


def _amount(cpus: float, gpus: float) -> str:
    parts = [f"{_plain(cpus)} CPU{'s' * (cpus != 1)}"] if cpus or not gpus else []
    if gpus:
        parts.append(f"{_plain(gpus)} GPU{'s' * (gpus > 1)}")
    return " and ".join(parts)


def _plain(number: float) -> str:
    return str(math.floor(number)) if number == math.floor(number) else f"{number:.2g}"
