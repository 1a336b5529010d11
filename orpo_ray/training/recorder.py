"""Writes a run's metrics: `metrics.jsonl`, and beside it what trackers and Prometheus are told."""

from __future__ import annotations

import json
import math

from orpo_ray.config import TrainConfig
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.telemetry.metrics import training_line
from orpo_ray.telemetry.trackers import open_trackers
from orpo_ray.training.loop import Line


class Recorder:
    """One line per optimizer step and per evaluation, on disk before the next step begins if there is room."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, *, resumed_at: int, evaluation_due: bool = False
    ) -> None:
        """`evaluation_due`: that of `resumed_at` is made again."""
        known = folder.last_steps()
        folder.forget_after(resumed_at, evaluation_too=evaluation_due)
        self._folder = folder
        self._unwritten = ""
        """Lines that the disk had no room for, or part of one."""
        self._trackers = open_trackers(config, folder.path, resumed_at, known, folder.note)

    def write(self, line: Line) -> None:
        # JSON has no NaN: a diverged loss is null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._append(json.dumps(plain) + "\n")
        training_line(self._folder.path, line)
        for tracker in self._trackers:
            tracker.log(line)

    def _append(self, text: str) -> None:
        """Write it behind what is unwritten yet. A full disk does not stop training: the next line tries again."""
        waiting = bool(self._unwritten)
        self._unwritten += text
        data = self._unwritten.encode()
        try:
            with self._folder.metrics.open("ab", buffering=0) as file:
                data = data[file.write(data) or 0 :]
        except OSError as error:
            if not waiting:
                self._folder.note(f"metrics.jsonl cannot be written, and is tried again with each line: {error}")
        self._unwritten = data.decode()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
