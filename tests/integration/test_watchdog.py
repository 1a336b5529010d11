"""A rank that stops is named by another one, whose process then ends: real processes, a real process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orpo_ray.training.watchdog import EXIT_CODE

RANKS = 3


@pytest.mark.parametrize("stopped", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_stopped_rank_is_named(stopped: int, tmp_path: Path) -> None:
    """Rank 0's process holds the group's store too, so with it every answer stops."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    command = [sys.executable, str(Path(__file__).with_name("watched_process.py")), str(tmp_path)]
    ranks = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(RANKS)]
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("rank-*"))) < RANKS and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks[stopped].send_signal(signal.SIGSTOP)
        others = [process for rank, process in enumerate(ranks) if rank != stopped]
        codes = [process.wait(timeout=60) for process in others]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert EXIT_CODE in codes  # the others may see their connection to it go first
    (told,) = tmp_path.glob("told-by-*")
    assert f"rank {stopped} gives no sign of life" in told.read_text()
    assert told.read_text().count("rank") == 1, "nobody else is blamed"
