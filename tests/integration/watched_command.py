"""A command in an environment of its own, and what can be seen of its processes from outside while it runs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import psutil
from secret_scan import leaks

METHODS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.ReporterService/GetTraceback",
)
"""One of each service of Ray's processes, which are answered for an empty message where nobody asks for a token."""
PATHS = ("/", "/metrics", "/logs", "/get_or_create_runtime_env")
_SECONDS = 0.5


@dataclass
class Seen:
    """What was seen of a command."""

    status: int = 0
    said: str = ""
    listening: dict[tuple[str, int], str] = field(default_factory=dict)
    """Title of the process by address and port."""
    answers: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    """What each asked without a token got, by what it was asked."""
    modes: dict[str, int] = field(default_factory=dict)
    """Of what lies in the temporary space, by name."""
    leaks: set[str] = field(default_factory=set)
    """Secrets in the temporary space."""
    left: list[str] = field(default_factory=list)
    """What lies there when the command is over."""


def watch(
    words: Sequence[str],
    environment: Mapping[str, str],
    temporary: Path,
    secrets: Mapping[str, str],
    enough: Callable[[], bool] | None = None,
    interrupt: int | None = None,
) -> Seen:
    """Run `python words` to its end, or until there is `enough`, when it is sent the signal `interrupt`. Its Ray uses
    the folder `temporary` for what is temporary."""
    seen, scanned = Seen(), 0.0
    with (temporary.parent / f"{temporary.name}.log").open("w+b") as log:
        driver = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log,
            env={**environment, "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)},
        )  # fmt: skip
        try:
            while driver.poll() is None:
                seen.listening |= (new := _listeners(driver.pid, seen.listening))
                seen.answers |= {place: _asked(place[0], place[1]) for place in new}
                for path in temporary.iterdir():
                    seen.modes[path.name] = stat.S_IMODE(path.lstat().st_mode)
                if time.monotonic() - scanned > 1:
                    seen.leaks |= set(leaks(temporary, secrets))
                    scanned = time.monotonic()
                if enough is not None and interrupt is not None and enough():
                    driver.send_signal(interrupt)
                    interrupt = None
                time.sleep(0.1)
        finally:
            driver.kill()
        seen.status = driver.wait()
        log.seek(0)
        seen.said = log.read().decode(errors="replace")
    seen.left = sorted(path.name for path in temporary.iterdir())
    return seen


def _listeners(pid: int, known: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Of a process and those that it has started: title by address and port, those not `known` alone."""
    found = {}
    try:
        own = psutil.Process(pid)
        processes = [own, *own.children(recursive=True)]
    except psutil.Error:
        return {}
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                place = (connection.laddr.ip, connection.laddr.port) if connection.laddr else None
                if connection.status == psutil.CONN_LISTEN and place and place not in known:
                    words = [os.path.basename(word) for word in process.cmdline()[:4]]
                    found[place] = " ".join(word for word in words if not word.startswith("-"))
        except psutil.Error:
            continue
    return found


def _asked(address: str, port: int) -> dict[str, str]:
    """What a port says to whoever has no token, by what it was asked, if anything: a status, or `metrics`."""
    host = f"[{address}]" if ":" in address else address
    found = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/{method}")(b"", timeout=_SECONDS)
                found[method] = "OK"
            except grpc.RpcError as error:
                code = error.code().name
                if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    break
                found[method] = code
    if not found:
        for path in PATHS:
            try:
                answer = httpx.get(f"http://{host}:{port}{path}", timeout=_SECONDS)
                found[path] = "metrics" if answer.text.startswith("# HELP") else str(answer.status_code)
            except httpx.HTTPError:
                break
    return found
