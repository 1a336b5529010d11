"""Writes a run's metrics: `metrics.jsonl`, and TensorBoard events beside it."""

from __future__ import annotations

import json
import math

from torch.utils.tensorboard import SummaryWriter

from orpo_ray.training.loop import Line
from orpo_ray.training.run_folder import RunFolder


class Recorder:
    """One line per optimizer step and per evaluation, on disk before the next step begins if there is room."""

    def __init__(self, folder: RunFolder, *, resumed_at: int) -> None:
        folder.forget_after(resumed_at)
        self._folder = folder
        self._unwritten = ""
        """Lines that the disk had no room for, or part of one."""
        # Readers drop events from `purge_step` on: the steps that are about to be repeated.
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=resumed_at + 1 if resumed_at else None)

    def write(self, line: Line) -> None:
        # JSON has no NaN: a diverged loss is null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._append(json.dumps(plain) + "\n")
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "step":
                group = "eval" if name.startswith("eval_") else "train"
                self._tensorboard.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, line["step"])

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
        self._tensorboard.close()
