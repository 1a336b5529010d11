"""Connecting to Ray: the cluster one runs on, or a small one of this machine."""

from __future__ import annotations

import logging
import os
import secrets

import ray

from orpo_ray.errors import UserError


def connect(cpus: int | None = None) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set inside a Ray job), or start one on this machine.

    A cluster started here listens on loopback only, wants a token that nobody else knows, and has at least
    `cpus` CPU slots. Does nothing where this process is connected already.
    """
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from None
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=max(cpus or 1, os.cpu_count() or 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        **quiet,
    )
