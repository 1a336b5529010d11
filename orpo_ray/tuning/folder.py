"""What a sweep leaves behind: `runs/<name>/` and its files."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from orpo_ray.config import StorageConfig, SweepConfig, TrainConfig
from orpo_ray.errors import UserError
from orpo_ray.training.checkpoints import Checkpoints
from orpo_ray.training.driver_lock import LOCK
from orpo_ray.training.run_folder import RunFolder, write_atomically
from orpo_ray.tuning.points import Settings

# A sweep that goes on may do so with more trials, at another place, for longer, and compare other finalists.
_FREE = {"trials", "steps", "hours", "concurrency", "finalists", "storage"}


START = "start.json"
"""In a trial's folder: seconds from its turn to its first optimizer step."""


class SweepFolder:
    """Paths and small files of one sweep; its trials are run folders, which hold all that there is to know of them."""

    def __init__(self, config: SweepConfig) -> None:
        self.path = config.run_dir
        self._config = config
        self.config = self.path / "config.yaml"
        self.results_csv = self.path / "results.csv"
        self.results_parquet = self.path / "results.parquet"
        self.best = self.path / "best.yaml"
        self.summary = self.path / "sweep.json"
        self.trials = self.path / "trials"
        self.ray = self.path / "ray"

    @property
    def held(self) -> dict[str, Any]:
        """What `sweep.json` says; empty before anything was written there."""
        if not self.summary.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return found

    def open_for(self, config: SweepConfig) -> None:
        """Create the folder, or make sure that the sweep in it is the same one. Raises `UserError` where it is not."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config.is_file():
            held = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            wanted = yaml.safe_load(config.to_yaml())
            differing = [key for key in wanted if key not in _FREE and held.get(key) != wanted[key]]
            if differing:
                raise UserError(
                    f"{self.path}: holds a sweep with other settings ({', '.join(differing)}); choose another "
                    "name=..., or remove the folder"
                )
        write_atomically(self.config, config.to_yaml())

    def training(self, index: int, settings: Settings) -> TrainConfig:
        """The run of a trial."""
        own = self._config.storage
        elsewhere = own.checkpoints is not None or own.mirror is not None
        checkpoints = own.checkpoints_of(self._config.name) if elsewhere else None
        storage = StorageConfig(path=str(self.trials), cache=str(own.cache_dir), checkpoints=checkpoints)
        return self._config.training(settings, f"{index:03d}", storage).with_absolute_paths()

    def trial(self, index: int) -> RunFolder:
        return RunFolder(self.trials / f"{index:03d}")

    def start(self, index: int) -> float | None:
        """Seconds from a trial's turn to its first optimizer step; None: not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return float(json.loads((self.trial(index).path / START).read_text(encoding="utf-8"))["seconds"])
        return None

    def failure(self, index: int) -> Path:
        return self.trial(index).path / "failed.json"

    def fail(self, index: int, reason: str) -> None:
        """Note that a trial has failed for good; the first reason counts."""
        self.trial(index).path.mkdir(parents=True, exist_ok=True)
        if not self.failure(index).is_file():
            text = json.dumps({"reason": " ".join(reason.split())}, ensure_ascii=False) + "\n"
            write_atomically(self.failure(index), text)

    def strip(self, index: int, settings: Settings, *, model: bool) -> None:
        """Remove what takes room of a trial that is over: its checkpoints, and its `model` too."""
        run = self.trial(index)
        models = {run.model, run.adapter, run.model_last, run.adapter_last}
        kept = {run.tensorboard, run.wandb} | (set() if model else models)
        heavy = [part for part in run.path.glob("*/") if part not in kept]
        if heavy and (training := self.training(index, settings)).storage.checkpoints is not None:
            checkpoints = Checkpoints(training.checkpoints_location)
            with suppress(OSError):  # its last worker may be writing still; the end of the sweep does this again
                for step in checkpoints.steps():
                    checkpoints.discard(step)
        for part in heavy:
            shutil.rmtree(part, ignore_errors=True)
        (run.path / LOCK).unlink(missing_ok=True)  # a trial that is stopped is ended without a word
