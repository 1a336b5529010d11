"""Where gloo listens on a host whose own name leads nowhere else than to itself."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

VARIABLE = "GLOO_SOCKET_IFNAME"


def own_address() -> str:
    """What this host's own name is mapped to, empty where to nothing: the address that gloo gives to other hosts."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def leads_nowhere(address: str) -> bool:
    """Whether others that are told this address find themselves, as where Debian and Ubuntu map a name to 127.0.1.1."""
    return not address or ipaddress.ip_address(address).is_loopback


def listen_at(address: str) -> None:
    """Have gloo listen at `address`, by which the cluster knows this host, where its own name leads nowhere and nobody
    has chosen an interface."""
    if VARIABLE in os.environ or not leads_nowhere(own_address()):
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ[VARIABLE] = name


def listen_where_the_cluster_does() -> None:
    """`listen_at` the address of this host's Ray node."""
    import ray

    listen_at(ray.util.get_node_ip_address())
