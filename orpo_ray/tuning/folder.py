"""What a sweep leaves behind: `runs/<name>/` and its files."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orpo_ray.config import StorageConfig, SweepConfig, TrainConfig
from orpo_ray.config.identity import same
from orpo_ray.config.kinds import held_for
from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, member, read_member, read_object
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.driver_lock import LOCK
from orpo_ray.storage.run_folder import RunFolder, write_atomically
from orpo_ray.tuning.points import Settings

# A sweep that goes on may do so with more trials, at another place, for longer, and compare other finalists.
_FREE = {"trials", "steps", "hours", "concurrency", "finalists", "storage"}
_PLACES = {"concurrency", "storage"}
"""Of no effect once all trials are over."""
_MEMBERS = {"lag": (int,), "seconds": NUMBER, "finished": (str,)}
"""What a sweep that goes on takes from `sweep.json`."""


START = "start.json"
"""In a trial's folder: seconds from its turn to its first optimizer step."""


class Failure(NamedTuple):
    """Why a trial has failed for good."""

    reason: str
    diverged: bool
    """Whether its settings are at fault: the loss stopped being finite."""


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
        """What `sweep.json` says; empty before anything was written there. Raises `UserError` where that is damaged."""
        if not self.summary.is_file():
            return {}
        found = read_object(self.summary)
        try:
            for key, kinds in _MEMBERS.items():
                member(found, key, *kinds)
        except ValueError as error:
            raise UserError(f"{self.summary}: {error}") from None
        return found

    def open_for(self, config: SweepConfig) -> None:
        """Create the folder, or make sure that the sweep in it is the same one. Without a trial that has begun it may
        become another; one that has all that is asked for is left as it is. Raises `UserError` where it holds another,
        or more trials than are asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        held, wanted = held_for("sweep", self.config), config.for_a_file()
        differing = [key for key in wanted if key not in _FREE and not _same(held or wanted, wanted, key)]
        if differing and not self.has_trials:
            shutil.rmtree(self.trials, ignore_errors=True)
            self.summary.unlink(missing_ok=True)
            differing = []
        if differing:
            raise UserError(
                f"{self.path}: holds a sweep with other settings ({', '.join(differing)}); choose another "
                "name=..., or remove the folder"
            )
        if (last := max(self.begun, default=-1)) >= config.number_of_trials:
            raise UserError(
                f"{self.path}: holds {last + 1} trials or more, and {config.number_of_trials} are asked for; choose "
                "another name=..., or ask for as many"
            )
        if not self.is_finished(config):
            write_atomically(self.config, config.to_yaml())

    @property
    def has_trials(self) -> bool:
        """Whether one of them has come to its first line of metrics, or has failed."""
        return any((self.trial(index).metrics.is_file() or self.failure(index).is_file()) for index in self.begun)

    def is_finished(self, config: SweepConfig) -> bool:
        """Whether all that `config` asks for is there. Raises `UserError` where `sweep.json` is damaged."""
        finished, wanted = self.held.get("finished", ""), config.to_yaml()
        if finished == wanted:
            return True
        try:
            before, now = yaml.safe_load(finished), yaml.safe_load(wanted)
        except yaml.YAMLError:
            return False
        return isinstance(before, dict) and all(_same(before, now, key) for key in now if key not in _PLACES)

    def training(self, index: int, settings: Settings) -> TrainConfig:
        """The run of a trial."""
        own = self._config.storage
        elsewhere = own.checkpoints is not None or own.mirror is not None
        checkpoints = own.checkpoints_of(self._config.name) if elsewhere else None
        storage = StorageConfig(path=str(self.trials), cache=str(own.cache_dir), checkpoints=checkpoints)
        return self._config.training(settings, f"{index:03d}", storage).with_absolute_paths()

    def trial(self, index: int) -> RunFolder:
        return RunFolder(self.trials / f"{index:03d}")

    @property
    def begun(self) -> list[int]:
        """The trials that have a folder."""
        return sorted(int(path.name) for path in self.trials.glob("[0-9]*") if path.name.isdecimal())

    def start(self, index: int) -> float | None:
        """Seconds from a trial's turn to its first optimizer step; None: not known. Raises `UserError` where the file
        is damaged."""
        file = self.trial(index).path / START
        if not file.is_file():
            return None
        seconds: float = read_member(file, "seconds", *NUMBER)
        if not abs(seconds) <= sys.float_info.max:  # JSON has integers beyond it, and Python's also NaN and infinity
            raise UserError(f"{file}: seconds is not finite")
        return seconds

    def failure(self, index: int) -> Path:
        return self.trial(index).path / "failed.json"

    def failed(self, index: int) -> Failure | None:
        """None: it has not. Raises `UserError` where the file is damaged."""
        file = self.failure(index)
        if not file.is_file():
            return None
        try:
            found = {"diverged": False, **read_object(file)}
            return Failure(member(found, "reason", str), member(found, "diverged", bool))
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None

    def kept_step(self, index: int) -> int | None:
        """The step of a finished trial's best model. Raises `UserError` where its summary is damaged."""
        step = read_object(self.trial(index).summary).get("best_step") if self.trial(index).finished else None
        return step if type(step) is int else None

    def fail(self, index: int, reason: str, *, diverged: bool = False) -> None:
        """Note that a trial has failed for good, and whether its settings are at fault; the first reason counts."""
        self.trial(index).path.mkdir(parents=True, exist_ok=True)
        if not self.failure(index).is_file():
            found = {"reason": " ".join(reason.split()), "diverged": diverged}
            write_atomically(self.failure(index), json.dumps(found, ensure_ascii=False) + "\n")

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


def _same(held: dict[str, Any], wanted: dict[str, Any], key: str) -> bool:
    """Whether two dumped configurations have the same there; a run's name and storage are not used (`train`)."""
    before, now = held.get(key), wanted[key]
    if key == "train" and isinstance(before, dict):
        before, now = ({**run, "name": None, "storage": None} for run in (before, now))
    return same(before, now)
