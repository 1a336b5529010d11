"""Where the doctor's questions are asked: in processes of this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

from orpo_ray.doctor.reach import TIMEOUT
from orpo_ray.errors import last_line

_ANSWER_SECONDS = 2 * TIMEOUT
Call = tuple[str, tuple[Any, ...]]
"""A node, and the arguments for it."""


class Silent(Exception):
    """A node did not answer; says why."""


class Nodes(Protocol):
    names: Sequence[str]
    gpus: Mapping[str, int] | None
    """That Ray has on each node; None without Ray."""

    def ask(self, function: Callable[..., Any], calls: Sequence[Call], *, with_gpu: bool = False) -> list[Any]:
        """Call `function` on each node, all at the same time; the answers, or `Silent`, in the order of `calls`."""


class ThisMachine:
    """No cluster: one node."""

    names: Sequence[str] = ("this machine",)
    gpus: Mapping[str, int] | None = None

    def ask(self, function: Callable[..., Any], calls: Sequence[Call], *, with_gpu: bool = False) -> list[Any]:
        if len(calls) == 1:
            return [function(*calls[0][1])]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(calls), spawn, initializer=_stay_on_loopback) as pool:
            return [future.result() for future in [pool.submit(function, *arguments) for _, arguments in calls]]


def _stay_on_loopback() -> None:
    """As a run on this machine alone does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"


class RayNodes:
    """All nodes of the cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        addresses = [node["NodeManagerAddress"] for node in alive]
        self._ids = {
            node["NodeManagerAddress"]
            + (f"#{node['NodeID'][:6]}" if addresses.count(node["NodeManagerAddress"]) > 1 else ""): node["NodeID"]
            for node in alive
        }
        self.names: Sequence[str] = list(self._ids)
        resources = [node["Resources"] for node in alive]
        self.gpus: Mapping[str, int] | None = {
            name: int(own.get("GPU", 0)) for name, own in zip(self.names, resources, strict=True)
        }

    def ask(self, function: Callable[..., Any], calls: Sequence[Call], *, with_gpu: bool = False) -> list[Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        tasks = [
            ray.remote(function)
            .options(
                num_cpus=0, num_gpus=1 if with_gpu else 0, max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._ids[node], soft=False),
            )
            .remote(*arguments)
            for node, arguments in calls
        ]  # fmt: skip
        deadline = time.monotonic() + _ANSWER_SECONDS
        return [self._answer(task, deadline) for task in tasks]

    def _answer(self, task: Any, deadline: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            return ray.get(task, timeout=max(0.1, deadline - time.monotonic()))
        except GetTimeoutError:
            ray.cancel(task, force=True)
            return Silent(f"no answer within {_ANSWER_SECONDS:.0f} s")
        except RayError as error:
            return Silent(last_line(error))
