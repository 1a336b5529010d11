"""A contestant's own process: loads once, then takes a step whenever the parent says so.

    python -m orpo_ray.bench.process

JSON lines in and out. The first line in is a `Task`, answered by `{"loaded": true}` or `{"unavailable": reason}`; each
line after it is `{"phase": PHASE}`, a request for a step, answered by a `StepReport`; `{"phase": "end"}` ends. When the
parent is gone this process ends at once, even in the middle of a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from orpo_ray.bench.measure import Memory

Phase = Literal["warm_up", "timed", "parts", "end"]


class Finished(Exception):
    """There are no more turns."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step of a contestant."""

    seconds: float
    """From the beginning of its turn to the end: collation, forward, backward, update, waiting for the device."""
    peak_bytes: int | None
    """Highest memory above the loaded model and its optimizer states; None in the first step."""
    resident_bytes: int | None
    """Highest memory in all."""
    parts: dict[str, float] | None
    """Seconds by what they went into, where they were asked for."""


class Messages:
    """The pipes to the parent: this process's standard input and output, which nothing else then reads or writes."""

    def __init__(self) -> None:
        self._source, self._sink = os.dup(0), os.fdopen(os.dup(1), "w")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)  # what libraries print is no message
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Reads by system calls alone: a thread that held a Python file's lock would disturb the process's end."""
        rest = b""
        while data := os.read(self._source, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._requests.put(json.loads(line))
        os._exit(1)  # the parent is gone

    def next(self) -> dict[str, Any]:
        return self._requests.get()

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, and so is this process in a moment
            self._sink.write(json.dumps(message) + "\n")
            self._sink.flush()


class Turns:
    """The `Turn` (see `task.py`) of a contestant that waits for the parent's requests."""

    def __init__(self, messages: Messages, memory: Memory, synchronise: Callable[[], None]) -> None:
        self._messages, self._memory, self._synchronise = messages, memory, synchronise
        self._started: float | None = None
        self._in_place = False

    def __call__(
        self, *, seconds: float | None = None, resident: int | None = None, parts: dict[str, float] | None = None
    ) -> bool:
        if self._started is not None:
            self._synchronise()
            elapsed = time.perf_counter() - self._started
            if seconds is None:
                report = StepReport(elapsed, *self._memory.peak(), parts)
            else:
                report = StepReport(seconds, None, resident, parts)
            self._messages.send(asdict(report))
        phase: Phase = self._messages.next()["phase"]
        if phase == "end":
            raise Finished
        if self._started is not None and not self._in_place:  # the first step has made the optimizer's states
            self._memory.settle()
            self._in_place = True
        self._memory.start()
        self._synchronise()
        self._started = time.perf_counter()
        return phase == "parts"


def main() -> None:
    messages = Messages()
    # Seconds of imports, before there is anything to do: contestants that are started together import together.
    from orpo_ray.bench.contestants import load
    from orpo_ray.bench.measure import memory_of, synchroniser
    from orpo_ray.bench.task import Task, Unavailable
    from orpo_ray.errors import UserError

    task = Task.from_json(messages.next())
    try:
        contestant = load(task)
    except (Unavailable, UserError) as error:
        messages.send({"unavailable": " ".join(str(error).split())})
        return
    messages.send({"loaded": True})
    with contextlib.suppress(Finished):
        contestant.run(Turns(messages, memory_of(task.device), synchroniser(task.device)))


if __name__ == "__main__":
    main()
