"""The same run through Ray Train and DeepSpeed, by `training.launcher.train`."""

from __future__ import annotations

import shutil

from orpo_ray.bench.task import Task, Turn
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.terminal import Console
from orpo_ray.training import launcher


class ThroughRay:
    """A whole run at its first turn; the turns after it hand over what the run's metrics say of its steps."""

    def __init__(self, task: Task) -> None:
        train = task.config.train.model_copy(update={"max_steps": task.steps})
        self.config = task.config.model_copy(update={"name": f"{task.config.name}-ray", "train": train})

    def run(self, turn: Turn) -> None:
        turn()
        shutil.rmtree(self.config.run_dir, ignore_errors=True)
        folder = launcher.train(self.config, Console(stderr=True))
        for line in read_metrics(folder.metrics).values():
            if "loss" in line:
                turn(seconds=line["tokens"] / line["tokens_per_second"], resident=line["peak_memory_bytes"])
