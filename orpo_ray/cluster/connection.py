"""Connecting to Ray: the cluster one runs on, or a small one of this machine."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from orpo_ray.cluster.allocator import use_huge_pages, use_one_arena
from orpo_ray.cluster.fork_server import ForkServer
from orpo_ray.cluster.head import Head
from orpo_ray.cluster.setup_worker import SOCKET, shell_command
from orpo_ray.errors import UserError
from orpo_ray.telemetry.phases import phase

_OWN = {
    # Where the workers talk to each other.
    "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1",
    "RAY_AUTH_MODE": "token",
    # Asked for 127.0.0.1, Ray on Linux takes the machine's own address and listens on all, unless it is told that this
    # is a system on which no other machine can join.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}  # fmt: skip
"""What the environment of a cluster of this machine holds, whatever else it was set to, for a person's own clusters."""
_SECONDS_TO_ANSWER = 10.0

SHARED = ("deepspeed", "pandas", "pyarrow.parquet", "torch.utils.tensorboard", "orpo_ray.training.launcher")
"""What drivers and workers import alike."""
OF_WORKERS = ("ray.train.torch", "orpo_ray.training.worker")
"""What workers import besides, and needs Ray."""
ENGINES = ("orpo_ray.inference.scoring", "orpo_ray.inference.vllm_imports")
"""What the actors of an evaluation import besides."""
SCORERS = ENGINES[:1]
"""The same where nothing is generated."""
TRIALS = ("ray.tune", "orpo_ray.tuning.trial")
"""What the trials of a sweep import besides."""

_head: Head | None = None
_forks: ForkServer | None = None
_before: dict[str, str | None] = {}
"""The environment variables of this process that are set for its own cluster, as they were."""


def begin(cpus: int, *, now: Sequence[str] = (), later: Sequence[str] = ()) -> None:
    """Start the cluster that `connect` is going to want, and import what its workers need meanwhile.

    `now` and `later`: modules that workers need besides, before the first starts or when none has started for a while.
    To be called once, early, by a process that has no other thread yet and has not imported Ray. A process that does
    not call it waits longer in `connect`, and that is all.
    """
    global _forks
    if not os.environ.get("RAY_ADDRESS"):
        _start_head(cpus)
    if _may_fork():
        use_one_arena()
        use_huge_pages()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed probes for others when it is imported
        with phase("imports"):
            for module in SHARED:
                importlib.import_module(module)
        _forks = ForkServer((), [*OF_WORKERS, *now], later, copy=True)
    atexit.register(disconnect)


def connect_if_ready() -> None:
    """Connect where that needs no waiting: the cluster is there. `connect` does so in any case. Raises as it does."""
    if os.environ.get("RAY_ADDRESS") or (_head is not None and _head.ready):
        connect()


def connect(cpus: int = 1) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set inside a Ray job), or start one on this machine.

    A cluster started here listens on loopback only, wants a token that nobody else knows, and has at least
    `cpus` CPU slots. Does nothing where this process is connected already. Raises `UserError` where no cluster answers
    at `RAY_ADDRESS`, or none lets this process in.
    """
    global _forks
    if _is_connected():
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address and _head is None:
        _start_head(cpus)
        if _may_fork():
            _forks = ForkServer(SHARED, OF_WORKERS, (), copy=False)
    atexit.register(disconnect)
    if address:
        _join(address)
    else:
        _join_own()


def is_own() -> bool:
    """Whether the cluster is of this machine alone, started by this process: it never grows."""
    return _head is not None


def disconnect() -> None:
    """Leave the cluster, and end it where this process has started it: nothing of it is left when this returns."""
    global _head, _forks
    if _is_connected():
        sys.modules["ray"].shutdown()
    if _forks is not None:
        _forks.stop()
    if _head is not None:
        _head.stop()
    _head = _forks = None
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _may_fork() -> bool:
    """Whether workers may be forked from one process.

    Not on a machine with GPUs, whose libraries must not be initialised before a fork, which nobody has tried there. Not
    in a Ray job, whose nodes run code that was brought to them.
    """
    gpus = Path("/dev/kfd").exists() or any(Path("/dev").glob("nvidia[0-9]*"))
    return sys.platform == "linux" and not gpus and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ


def _start_head(cpus: int) -> None:
    global _head
    own = {**_OWN, "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    _before.update({name: os.environ.get(name) for name in own})
    os.environ.update(own)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default (15) the cluster's own daemons go before training
    # Each of Ray's actors takes 1 % of a core, which training uses whole: no spare one, and none that waits for a
    # notice that this machine is to be drained, which nobody else could give.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _head = Head(max(cpus, os.cpu_count() or 1))


def _join_own() -> None:
    """Connect to the cluster that this process has started."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    assert _head is not None
    # Somebody may have imported Ray before, which reads its settings then: it is told to look again.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    _init(_head.address, _forked())


def _join(address: str) -> None:
    """Connect to the cluster at `address`. Raises `UserError` where none answers, or none lets this process in."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address) or address  # of "auto"
    except (ConnectionError, ValueError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {str(error).partition('.')[0]}") from None
    host, _, port = found.rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        except OSError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from None
    try:
        if _forks is None or not _is_of_this_machine(found):
            _init(address, {})
        else:  # it is somebody else's cluster, and starts workers by Ray's own script
            _init(address, _forked(py_executable=shell_command(_forks.path)))
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster there lets this process in; RAY_AUTH_TOKEN or ~/.ray/auth_token "
            f"has to hold its token: {str(error).splitlines()[0]}"
        ) from None


def _is_of_this_machine(address: str) -> bool:
    """Whether all nodes that the cluster has now are on this machine. Raises as `ray.init` where it lets nobody in."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one the client would end this process
    nodes = GcsClient(address=address).get_all_node_info(timeout=_SECONDS_TO_ANSWER).values()
    own = {one.address for addresses in psutil.net_if_addrs().values() for one in addresses}
    return all(node.node_manager_address in own for node in nodes if node.state == node.ALIVE)


def _forked(**of_workers: str) -> dict[str, Any]:
    """The runtime environment of workers that come from this process's fork server; `of_workers`: more of it."""
    # Without any runtime environment Ray starts a worker past `setup_worker.py`.
    return {} if _forks is None else {"env_vars": {SOCKET: _forks.path}, **of_workers}


def _init(address: str, runtime_env: dict[str, Any]) -> None:
    """`ray.init`, and SIGTERM answered as before: Ray's own answer is a stack dump and the end by an abort."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    ray.init(address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.WARNING)
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)
    if runtime_env:  # the fork server imports what needs Ray at the first call, which nobody waits for
        ray.remote(num_cpus=0)(_nothing).remote()


def _nothing() -> None:
    pass
