"""Ranks of a process group: real processes on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


@contextmanager
def started(
    command: Sequence[str], ranks: int, logs: Path, **environment: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`ranks` processes of `command` that find each other, killed at the end. What they print is in `logs`: log-0 …"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **group, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(logs / f"log-{rank}").open("wb"), stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_jobs(script: str, folder: Path, jobs: Mapping[str, Any], ranks: int) -> dict[str, dict[str, Any]]:
    """What rank 0 of `ranks` of `script` leaves in `folder/results.pt`, having found `jobs` in `folder/jobs.pt`."""
    torch.save(jobs, folder / "jobs.pt")
    command = [sys.executable, str(HERE / script), str(folder)]
    own = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    with started(command, ranks, folder, **own) as processes:
        codes = [process.wait(timeout=400) for process in processes]
    assert codes == [0] * ranks, (folder / "log-0").read_text()[-4000:]
    return torch.load(folder / "results.pt", weights_only=False)
