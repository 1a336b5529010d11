"""Whether a process that left its name in a file is alive: its number is given again, and means little elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def pids_of() -> str | None:
    """Within what a process's number names it: a boot of a machine, and a container there. None: cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started(pid: int) -> str | None:
    """When a process began, in ticks since boot, which no change of the clock moves; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *others = stat.rpartition(")")[2].split()
    return None if state in "ZX" else others[18]
