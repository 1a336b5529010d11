"""A rank that stops is named by another one, whose process then ends: real processes, a real process group."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from ranks import started

from orpo_ray.training.watchdog import EXIT_CODE

RANKS = 3


@pytest.mark.parametrize("stopped", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_stopped_rank_is_named(stopped: int, tmp_path: Path) -> None:
    """Rank 0's process holds the group's store too, so with it every answer stops."""
    command = [sys.executable, str(Path(__file__).with_name("watched_process.py")), str(tmp_path)]
    with started(command, RANKS, tmp_path) as ranks:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("rank-*"))) < RANKS and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks[stopped].send_signal(signal.SIGSTOP)
        others = [process for rank, process in enumerate(ranks) if rank != stopped]
        codes = [process.wait(timeout=60) for process in others]
    assert EXIT_CODE in codes  # the others may see their connection to it go first
    (told,) = tmp_path.glob("told-by-*")
    assert f"rank {stopped} gives no sign of life" in told.read_text()
    assert told.read_text().count("rank") == 1, "nobody else is blamed"
