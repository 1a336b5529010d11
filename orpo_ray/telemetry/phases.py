"""Where the time of a start goes: a line for each phase of each process, where `ORPO_RAY_PROFILE_START` names a file.

`benchmarks/startup.py` makes a table of it. Costs nothing where that is not set.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "ORPO_RAY_PROFILE_START"


@contextmanager
def phase(name: str) -> Iterator[None]:
    """While the body runs, this process is at `name`. Phases may hold others."""
    path = os.environ.get(VARIABLE)
    if path is None:
        yield
        return
    began, cpu = time.time(), time.process_time()
    try:
        yield
    finally:
        line = {
            "process": os.getpid(),
            "phase": name,
            "began": began,
            "seconds": time.time() - began,
            "cpu_seconds": time.process_time() - cpu,
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
