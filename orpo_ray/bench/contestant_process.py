"""The parent's end of a contestant's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from orpo_ray.bench.process import Phase, StepReport
from orpo_ray.bench.task import Task

_SECONDS_TO_END = 60  # of a process that was asked to: Ray takes a while to shut down


def _first_gpu() -> str:
    """The one that contestants use: Hugging Face's trainer would spread over all that it sees."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


class Lost(Exception):
    """A contestant cannot run here, or its process has died; says why in one line."""


class ContestantProcess:
    """One contestant at work. It computes only while `load` or `step` waits (it imports before), and does not outlive
    this process.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orpo_ray.bench.process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            start_new_session=True,  # Ctrl-C is this process's to answer
            env={**os.environ, "CUDA_VISIBLE_DEVICES": _first_gpu()},
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self) -> None:
        """Load model and data. Raises `Lost` where the contestant cannot run here."""
        answer = self._ask(self._task.to_json())
        if "unavailable" in answer:
            raise Lost(answer["unavailable"])

    def step(self, phase: Phase) -> StepReport:
        """One optimizer step. Raises `Lost` where the process dies of it."""
        return StepReport(**self._ask({"phase": phase}))

    def end(self) -> None:
        """Let the process end in order."""
        self._tell({"phase": "end"})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        self.stop()

    def stop(self) -> None:
        """End the process wherever it is."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None and not stream.closed:
                stream.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._tell(message)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Lost(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead; whoever waits for its answer is told
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        if code < 0:
            name = signal.Signals(-code).name
            return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return lines[-1] if lines else f"its process ended with code {code}"
