"""Whether the Ray cluster of `RAY_ADDRESS` answers, with this process's token and without one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from orpo_ray.doctor.finding import Finding

_TIMEOUT = 20.0
# In a process of its own: Ray waits for many minutes where nothing answers, and aborts where a token's file is missing.
_KNOCK = """
import os
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient
GcsClient(address=canonicalize_bootstrap_address_or_die(os.environ["RAY_ADDRESS"]))
"""


def access(environment: Mapping[str, str]) -> list[Finding]:
    """The first finding says whether the cluster can be inspected."""
    address = environment["RAY_ADDRESS"]
    problem = _unreachable(address) or _knock(environment)
    if "InvalidAuthToken" in problem or "Unauthenticated" in problem:
        mode = environment.get("RAY_AUTH_MODE")
        had = "no token was offered" if mode == "disabled" else "the token of this machine is not the cluster's"
        fix = "set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or in the file ~/.ray/auth_token"
        return [Finding("FAIL", "Ray", f"{address} refuses: {had}", fix)]
    if "RAY_AUTH_TOKEN_PATH" in problem:
        path = environment.get("RAY_AUTH_TOKEN_PATH", "")
        return [Finding("FAIL", "Ray", f"RAY_AUTH_TOKEN_PATH={path} cannot be read", "put the cluster's token there")]
    if problem:
        fix = "start it (ray start --head), or mend RAY_ADDRESS; a firewall may stand between"
        return [Finding("FAIL", "Ray", f"no cluster answers at {address}: {problem}", fix)]
    findings = [Finding("OK", "Ray", f"{address} answers")]
    bare = {k: v for k, v in environment.items() if k not in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")}
    if _knock({**bare, "RAY_AUTH_MODE": "disabled"}):
        findings.append(Finding("OK", "token", "asked for by the cluster"))
    else:
        fix = "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
        found = "the cluster takes anyone: whoever reaches it may run programs on its nodes"
        findings.append(Finding("WARN", "token", found, fix))
    return findings


def alone() -> Finding:
    """Without `RAY_ADDRESS` orpo-ray starts a cluster by itself."""
    return Finding("OK", "token", "no RAY_ADDRESS: orpo-ray starts Ray here, on loopback, with a token of its own")


def _unreachable(address: str) -> str:
    """Why nothing listens at `host:port`; empty: something does, or the address is of another kind, such as auto."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return ""
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT):
            return ""
    except (OSError, OverflowError) as error:
        return str(error)


def _knock(environment: Mapping[str, str]) -> str:
    """What goes wrong, in a line; empty: nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _KNOCK], env={**environment, "PATH": environment.get("PATH", os.defpath)},
            capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"nothing came within {_TIMEOUT:.0f} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "AUTH_TOKEN" in line or "AuthToken" in line or "Failed to connect" in line]
    return "" if done.returncode == 0 else (telling or lines or [f"exit code {done.returncode}"])[-1]
