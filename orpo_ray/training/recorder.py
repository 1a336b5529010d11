"""Writes a run's metrics: `metrics.jsonl`, and TensorBoard events beside it."""

from __future__ import annotations

import json
import math

from torch.utils.tensorboard import SummaryWriter

from orpo_ray.training.loop import Line
from orpo_ray.training.run_folder import RunFolder


class Recorder:
    """One line per optimizer step and per evaluation, on disk before the next step begins."""

    def __init__(self, folder: RunFolder, *, resumed_at: int) -> None:
        folder.forget_after(resumed_at)
        self._file = folder.metrics.open("a", encoding="utf-8")
        # Readers drop events from `purge_step` on: the steps that are about to be repeated.
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=resumed_at + 1 if resumed_at else None)

    def write(self, line: Line) -> None:
        # JSON has no NaN: a diverged loss is null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name != "step":
                group = "eval" if name.startswith("eval_") else "train"
                self._tensorboard.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, line["step"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()
