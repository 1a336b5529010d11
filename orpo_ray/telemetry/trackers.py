"""Where a run's curves go besides `metrics.jsonl`: TensorBoard files, Weights & Biases, MLflow.

Training neither waits for a tracker nor stops because of one. A run that goes on continues what it began there, and no
step is told twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from orpo_ray.atomic import new_file
from orpo_ray.config import TrainConfig
from orpo_ray.errors import UserError
from orpo_ray.parsing import from_json
from orpo_ray.telemetry.metrics import run_and_trial

Line = dict[str, Any]
Note = Callable[[str], None]

_SECONDS_TO_CLOSE = 60.0
_SECONDS_BETWEEN_TRIES = 30.0
_MEMORY = "trackers.json"
_PARAMETERS = 100  # that MLflow takes in one call
_PARAMETER_LENGTH = 6000


class Tracker(Protocol):
    def log(self, line: Line) -> None:
        """Take in a training or an evaluation line."""

    def close(self) -> None:
        """No more will come."""


def require_trackers(names: Iterable[str]) -> None:
    """Raises `UserError` where the package of a tracker is not installed."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; pip install 'orpo_ray[trackers]'")


def open_trackers(
    config: TrainConfig, folder: Path, resumed_at: int, known: tuple[int, int], note: Note
) -> list[Tracker]:
    """Those that `config` asks for. `known`: the last training and evaluation steps that an earlier try has written."""
    require_trackers(config.trackers)
    trackers: list[Tracker] = []
    remote = [name for name in config.trackers if name != "tensorboard"]
    if "tensorboard" in config.trackers:
        trackers.append(TensorBoard(folder / "tensorboard", resumed_at))
    if remote:
        identity, told = _remembered(folder, config.name, known)
        kinds: dict[str, Callable[[TrainConfig, Path, str], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}
        trackers += (Beside(name, partial(kinds[name], config, folder, identity), told, note) for name in remote)
    return trackers


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line as `train/loss`, `eval/loss`."""
    return {
        ("eval/" if name.startswith("eval_") else "train/") + name.removeprefix("eval_"): value
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    }


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary: Any = Summary
        # Readers drop events from `purge_step` on: the steps that are about to be repeated.
        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)

    def log(self, line: Line) -> None:
        # In one event: an event for each of a line's numbers takes a millisecond of every step.
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars(line).items()]
        self._writer.file_writer.add_summary(self._summary(value=values), line["step"])

    def close(self) -> None:
        self._writer.close()


class Beside:
    """A tracker on a server, in a thread of its own, which may wait for it. It is told the lines that are new to it.

    What fails is noted once; the lines wait, and are tried again with a later one.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], known: tuple[int, int], note: Note) -> None:
        self._name, self._start, self._known, self._note = name, start, known, note
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._waiting: list[Line] = []
        self._tracker: Tracker | None = None
        self._noted = False
        self._failed_at = -_SECONDS_BETWEEN_TRIES
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, line: Line) -> None:
        if line["step"] > self._known["loss" not in line]:
            self._lines.put(line)

    def close(self) -> None:
        """Waits a minute at most for what the server has not taken yet."""
        self._lines.put(None)
        self._thread.join(_SECONDS_TO_CLOSE)
        if self._thread.is_alive() or self._waiting:
            self._note(f"{self._name} was not told the last {len(self._waiting)} lines of metrics")

    def _work(self) -> None:
        going_on = True
        while going_on:
            line = self._lines.get()
            going_on = line is not None
            if line is not None:
                self._waiting.append(line)
            if going_on and time.monotonic() < self._failed_at + _SECONDS_BETWEEN_TRIES:
                continue
            try:
                self._tracker = self._tracker or self._start()
                while self._waiting:
                    self._tracker.log(self._waiting[0])
                    del self._waiting[0]
                if not going_on:
                    self._tracker.close()
            except Exception as error:  # a tracker's own, of many kinds
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        if not self._noted:
            told = " ".join(str(error).split())[:300] or type(error).__name__
            self._note(f"{self._name} does not take metrics, and is tried again: {told}")
        self._noted = True


class Wandb:
    """Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_API_KEY`, `WANDB_MODE` and so on are its own."""

    def __init__(self, config: TrainConfig, folder: Path, identity: str) -> None:
        import wandb

        run, trial = run_and_trial(folder)
        # Its metadata would hold the command line and the address of the git remote, with what is secret in them.
        settings = wandb.Settings(x_disable_meta=True, disable_git=True, disable_code=True, console="off", silent=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "orpo_ray", id=identity, resume="allow", dir=str(folder),
            name=f"{run}/{trial}" if trial else run, group=run if trial else None, config=config.for_a_file(),
            settings=settings,
        )  # fmt: skip

    def log(self, line: Line) -> None:
        self._run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow. `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_TRACKING_TOKEN` and so on are its own."""

    def __init__(self, config: TrainConfig, folder: Path, identity: str) -> None:
        # By itself it waits minutes for a server that is down; the lines wait anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "orpo_ray"
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._id = self._find(experiment, identity) or self._create(experiment, identity, config, folder)
        self._client.update_run(self._id, status="RUNNING")

    def log(self, line: Line) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, line["step"]) for name, value in scalars(line).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _find(self, experiment: str, identity: str) -> str | None:
        runs = self._client.search_runs([experiment], f"tags.`orpo_ray.id` = '{identity}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self, experiment: str, identity: str, config: TrainConfig, folder: Path) -> str:
        from mlflow.entities import Param

        run, trial = run_and_trial(folder)
        tags = {"orpo_ray.id": identity, "orpo_ray.run": run, "orpo_ray.trial": trial}
        name = f"{run}/{trial}" if trial else run
        created: str = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        settings = [Param(key, text[:_PARAMETER_LENGTH]) for key, text in _flat(config.for_a_file())]
        for start in range(0, len(settings), _PARAMETERS):
            self._client.log_batch(created, params=settings[start : start + _PARAMETERS])
        return created


def _flat(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and their values as texts."""
    found: list[tuple[str, str]] = []
    for key, value in mapping.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]
    return found


def _remembered(folder: Path, name: str, known: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """What servers know the run by, and the steps that they were told at most.

    The file outlives what `metrics.jsonl` forgets: a run that is interrupted twice before its next checkpoint has told
    of steps that are no longer there.
    """
    file = folder / _MEMORY
    try:
        held = from_json(file.read_text(encoding="utf-8"))
        identity, before = str(held["id"]), held["told"]
        known = max(known[0], int(before[0])), max(known[1], int(before[1]))
    except (OSError, ValueError, LookupError, TypeError):
        identity = f"{name}-{secrets.token_hex(4)}"
    with new_file(file) as new:
        new.write_text(json.dumps({"id": identity, "told": known}) + "\n", encoding="utf-8")
    return identity, known
