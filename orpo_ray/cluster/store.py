"""The store through which torch's processes find each other listens where its address says, not everywhere."""

from __future__ import annotations

import importlib
import socket
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

_rendezvous = importlib.import_module("torch.distributed.rendezvous")  # its package has a function of that name
_everywhere = _rendezvous._create_c10d_store


def listen_where_told() -> None:
    """Have the stores that this process will hold listen on their own address alone; by itself torch takes any."""
    _rendezvous._create_c10d_store = _create_store  # type: ignore[attr-defined]


def _create_store(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> Store:
    """In place of torch's function of this signature."""
    listener = _listener(hostname, port) if rank == 0 else None
    if listener is None:
        found: Store = _everywhere(hostname, port, rank, world_size, timeout, use_libuv)
        return found
    return TCPStore(
        hostname, listener.getsockname()[1], world_size, True, timeout,
        master_listen_fd=listener.detach(), use_libuv=use_libuv,
    )  # fmt: skip


def _listener(hostname: str, port: int) -> socket.socket | None:
    """None where that is not an address of this machine: others know it by one that leads here."""
    family, kind, protocol, _, address = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        return None
    return listener
