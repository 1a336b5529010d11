"""Whether the ports that `ray start --head` takes are free."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

import psutil

from orpo_ray.doctor.finding import Finding

PORTS = {6379: "--port", 8265: "--dashboard-port", 10001: "--ray-client-server-port"}
"""Of a head node by default, and the option of `ray start` that moves each."""


def ports(wanted: dict[int, str] = PORTS) -> list[Finding]:
    """For a machine where no cluster is inspected."""
    taken = [port for port in wanted if not _is_free(port)]
    findings = []
    for port in taken:
        who = _holder(port)
        if who == "gcs_server":
            fix = "RAY_ADDRESS=auto orpo-ray doctor looks at that cluster"
            findings.append(Finding("WARN", "ports", f"{port}: a Ray cluster runs here already", fix))
        else:
            fix = f"end it, or start the head with {wanted[port]}=ANOTHER; orpo-ray by itself does not need the port"
            findings.append(Finding("WARN", "ports", f"{port} is taken{f' by {who}' if who else ''}", fix))
    return findings or [Finding("OK", "ports", f"{', '.join(map(str, wanted))} are free")]


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _holder(port: int) -> str:
    """Name of the process that listens there; empty where the system does not tell."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                name: str = psutil.Process(connection.pid).name()
                return "gcs_server" if name == "gcs_server" else f"{name} (process {connection.pid})"
    return ""
