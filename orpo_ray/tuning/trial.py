"""One trial: a training run as `orpo-ray train` runs it, whose evaluations Ray Tune is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.tune

from orpo_ray.cluster.hosts import not_seen
from orpo_ray.config import TrainConfig
from orpo_ray.errors import Diverged, UserError, last_line
from orpo_ray.evaluation.in_training import validate_checkpoint
from orpo_ray.storage.driver_lock import LOCK
from orpo_ray.storage.run_folder import RunFolder, write_atomically
from orpo_ray.telemetry.logs import log, log_as
from orpo_ray.telemetry.metrics import run_and_trial
from orpo_ray.terminal import Console
from orpo_ray.training import launcher
from orpo_ray.training.progress import following
from orpo_ray.training.stopping import StopRequest
from orpo_ray.tuning.folder import START


def run_trial(trial: dict[str, Any]) -> None:
    """The function that Ray Tune runs in a process of its own. `trial`: its `run` as JSON, when it was `given`,
    and as `stop` the name of the sweep's request to stop.

    A trial that fails reports why; it raises nothing, for Ray Train has retried what was the machine's fault already.
    That the driver writes it down, not the trial, keeps a sweep that is being killed from blaming its trials.
    """
    config = TrainConfig.model_validate_json(trial["run"])
    run = RunFolder(config.run_dir)
    if not (run.path.parents[1] / LOCK).exists():  # that of the sweep, held by its driver
        ray.tune.report({"mistake": not_seen("storage.path", str(run.path.parents[1]), "the sweep's driver")})
        return
    run.path.mkdir(parents=True, exist_ok=True)
    name, index = run_and_trial(run.path)
    log_as(run=name, trial=index, role="trial")
    log("trial begins")
    failure, diverged = "", False
    with (run.path / "log.txt").open("a", encoding="utf-8") as said, told_to_tune(run, trial["given"]):
        try:
            # The sweep holds its own folder: who holds a trial's is an earlier process of this trial, and goes.
            stop = StopRequest(trial["stop"])
            launcher.train(config, Console(file=said), validate_checkpoint, wait=True, stop=stop)
        except KeyboardInterrupt:  # stopped, its checkpoint saved: the sweep goes on with it
            pass
        except UserError as error:
            failure, diverged = str(error), isinstance(error, Diverged)
        except Exception as error:
            said.write(f"{error}\n")
            failure = crash(error)
    log("trial ends", reason=failure)
    if failure:
        ray.tune.report({"failure": failure, "diverged": diverged})


def crash(error: BaseException) -> str:
    """One line on what ended a run: the last of a traceback that came from a worker."""
    return f"crashed: {last_line(error)}"[:500]


@contextmanager
def told_to_tune(run: RunFolder, given: float) -> Iterator[None]:
    """While the body runs, report each evaluation in a run's metrics to Ray Tune, those of an earlier try too.

    A trial that is new here also notes how long its first step took to come since it was `given`.

    Reports come from the run's own file rather than from its workers (`ray.train.report` is a barrier for all of
    them), so a trial computes exactly what `orpo-ray train` does.
    """

    waits = run.last_steps()[0] < 0

    def tell(news: Iterator[list[dict[str, Any]]]) -> None:
        nonlocal waits
        for lines in news:
            for line in lines:
                if "loss" in line and waits:
                    waits = False
                    write_atomically(run.path / START, json.dumps({"seconds": round(time.time() - given, 1)}) + "\n")
                elif "loss" not in line and line["step"]:
                    ray.tune.report({"step": line["step"]})

    with following({run.metrics: 0}, tell):
        yield
