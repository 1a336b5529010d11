"""Connecting to Ray: the cluster one runs on, or a small one of this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys

from orpo_ray.config import ScalingConfig
from orpo_ray.errors import UserError

_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
"""Where the workers of a cluster of this machine talk to each other."""
_SECONDS_TO_ANSWER = 10.0


def connect(cpus: int = 1) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set inside a Ray job), or start one on this machine.

    A cluster started here listens on loopback only, wants a token that nobody else knows, and has at least
    `cpus` CPU slots. Does nothing where this process is connected already.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address and "ray" not in sys.modules:  # Ray reads both modes once, when imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
        # Asked for 127.0.0.1, Ray on Linux takes the machine's own address and listens on all, unless it is told that
        # this is a system on which no other machine can join.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    if address:
        _join(address)
        return
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default (15) the cluster's own daemons go before training
    # Each of Ray's actors takes 1 % of a core, which training uses whole: no spare one, and none that waits for a
    # notice that this machine is to be drained, which nobody else could give.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
    )


def _join(address: str) -> None:
    """Connect to the cluster at `address`. Raises `UserError` where none answers, or none lets this process in."""
    import ray

    host, _, port = address.rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        except OSError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster there lets this process in; RAY_AUTH_TOKEN or ~/.ray/auth_token "
            f"has to hold its token: {str(error).splitlines()[0]}"
        ) from None


def uses_gpus(scaling: ScalingConfig, gpus: int) -> bool:
    """Whether the workers of a training run take GPUs on a cluster that has `gpus` of them."""
    if scaling.use_gpu == "auto":
        return gpus >= scaling.fewest_workers * scaling.gpus_per_worker
    return scaling.use_gpu
