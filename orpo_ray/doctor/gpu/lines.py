"""What is found, as lines of JSON: printed at once, and written to a file. docs/gpu.md tells their fields."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any, TextIO

FORMAT = 1
"""Of the lines; raised where a field changes its meaning or goes."""
_DIGITS = 4

Line = dict[str, Any]


class Lines:
    """Each line has its `stage` and `at`, seconds since `start` (of `time.perf_counter`)."""

    def __init__(self, start: float, *outputs: TextIO) -> None:
        self.start = start
        self.said: list[Line] = []
        self._outputs = outputs
        self._lock = threading.Lock()  # the time limit speaks from a thread of its own

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start

    def say(self, stage: str, **fields: Any) -> None:
        line = {"stage": stage, "at": round(self.seconds, 1), **{name: plain(value) for name, value in fields.items()}}
        with self._lock:
            self.said.append(line)
            for output in self._outputs:
                output.write(json.dumps(line) + "\n")  # escaped: nothing in it is obeyed by a terminal
                output.flush()


def plain(value: Any) -> Any:
    """Floats of four digits; null for what is no number, which JSON cannot say."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value
