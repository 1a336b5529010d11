"""`orpo-ray sweep` through the real stack: Ray Tune over Ray Train, real processes, real faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from file_modes import unlike_the_umask

from orpo_ray.beside import beside
from orpo_ray.config import SweepConfig, TrainConfig, load_config, parse_as
from orpo_ray.errors import UserError
from orpo_ray.report import write_sweep_report
from orpo_ray.training.launcher import train
from orpo_ray.tuning.sweep import sweep

RUN: dict[str, Any] = {
    "name": "toy",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 600},
    "optim": {"warmup_steps": 5},
    "train": {
        "epochs": 2,
        "max_steps": 32,
        "global_batch_size": 24,
        "eval_every_steps": 8,
        "checkpoint_every_steps": 8,
    },
    "scaling": {"max_failures": 1},
}


def config(storage: Path, **keys: Any) -> SweepConfig:
    mapping = {"train": RUN, "grace_steps": 8, "concurrency": 2, "storage": {"path": str(storage)}, **keys}
    return parse_as(SweepConfig, mapping, [], "test")


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
    return found


def trials(folder: Path) -> list[dict[str, Any]]:
    """What `sweep.json` says of them; it is written anew whenever more is known."""
    summary = folder / "sweep.json"
    found: list[dict[str, Any]] = json.loads(summary.read_text())["trials"] if summary.is_file() else []
    return found


def workers(trial: Path) -> list[int]:
    """Processes that train a trial: its rank 0 names its TensorBoard files by the time and its own number."""
    found = {int(file.name.split(".")[-2]) for file in (trial / "tensorboard").glob("events.*")}
    return [pid for pid in found if Path(f"/proc/{pid}").is_dir()]


def last_step(trial: Path) -> int:
    metrics = trial / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def meanwhile(look: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `look` again and again while the body runs."""

    def run(over: threading.Event) -> None:
        while not over.wait(0.05):
            look()

    return beside(run)


def test_lost_workers_divergence_and_early_stops(ray_cluster: None, tmp_path: Path) -> None:
    """Six trials: one loses a worker once, one each time, one diverges, two are stopped and leave nothing behind."""
    rates = [3e-4, 2e-3, 1.5e-3, 1e30, 1e-6, 2e-6]
    order = np.random.default_rng(0).permutation(len(rates))  # the one that the sweep's seed draws
    listed = [rates[place] for place in np.argsort(order)]
    own = config(
        tmp_path, name="faults", searcher="grid", space={"optim.lr": f"grid({', '.join(map(str, listed))})"},
        metric="eval_loss", mode="min", keep=1,
    )  # fmt: skip
    folder = own.run_dir
    cpus = ray.cluster_resources()["CPU"]
    killed: dict[int, set[int]] = {1: set(), 2: set()}
    not_before = {1: 9, 2: 0}  # step
    gone: dict[int, float] = {}
    stopped: dict[int, float] = {}

    def look() -> None:
        for index, times in ((1, 1), (2, 99)):
            if len(killed[index]) < times and last_step(folder / f"trials/{index:03d}") >= not_before[index]:
                for pid in workers(folder / f"trials/{index:03d}"):
                    if pid not in killed[index]:
                        killed[index].add(pid)
                        os.kill(pid, signal.SIGKILL)
        for trial in trials(folder):
            index = trial["trial"]
            if trial["status"] == "stopped":
                stopped.setdefault(index, time.monotonic())
                if not workers(folder / f"trials/{index:03d}"):
                    gone.setdefault(index, time.monotonic())

    with meanwhile(look):
        sweep(own)
        ended = time.monotonic()
        while ray.available_resources().get("CPU", 0) < cpus and time.monotonic() < ended + 30:
            time.sleep(0.1)
        freed = time.monotonic() - ended
        while len(gone) < 2 and time.monotonic() < ended + 30:
            time.sleep(0.1)

    found = trials(folder)
    assert [trial["settings"]["optim.lr"] for trial in found] == rates
    assert [trial["status"] for trial in found] == ["finished", "finished", "failed", "failed", "stopped", "stopped"]
    assert len(killed[1]) == 1 and len(killed[2]) == 2  # the second loss is more than max_failures allows
    assert "crashed: " in found[2]["reason"]
    assert "the loss is nan" in found[3]["reason"]
    assert [json.loads((folder / f"trials/{i:03d}/failed.json").read_text())["diverged"] for i in (2, 3)] == [
        False,
        True,
    ]
    assert {row["reason"] for row in rows(folder) if row["trial"] == 5} == {"by asha at step 8"}
    assert json.loads((folder / "sweep.json").read_text())["winner"] == 1
    for index in (4, 5):
        took = gone[index] - stopped[index]
        print(f"trial {index:03d}: its workers were gone {took:.1f} s after it was stopped")
        assert took <= 10
    print(f"all CPUs were free {freed:.1f} s after the sweep, whose last trials were stopped")
    assert freed <= 10
    assert (folder / "trials/001/model/model.safetensors").is_file()
    for index in range(6):
        left = {part.name for part in (folder / f"trials/{index:03d}").iterdir() if part.is_dir()}
        assert left == ({"tensorboard", "model"} if index == 1 else {"tensorboard"})
    assert write_sweep_report(folder).read_text().count("<svg") >= 3
    assert unlike_the_umask(folder) == {}


def test_a_trade_off_is_sought_by_optuna_within_its_hours(ray_cluster: None, tmp_path: Path) -> None:
    """A second is too short for any trial; with more time the same sweep goes on to its end."""
    own = config(
        tmp_path, name="trade-off", trials=3, searcher="optuna", scheduler="none", trade_off={"eval_nll": "min"},
        space={"objective.lambda": "loguniform(0.1, 4)", "optim.lr": "loguniform(1e-4, 5e-3)"},
    )  # fmt: skip
    folder = own.run_dir
    with pytest.raises(UserError, match="no trial came to its end; the first reason: the budget ended before"):
        sweep(own.model_copy(update={"hours": 1e-9}))
    assert not (folder / "best.yaml").exists()
    sweep(own)
    found = json.loads((folder / "sweep.json").read_text())
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 3
    assert all(0 < trial["start_seconds"] < 60 for trial in found["trials"])
    kept = {trial["trial"]: trial["kept"] for trial in found["trials"]}
    ends = {
        row["trial"]: (-row["eval_reward_accuracy"], row["eval_nll"]) for row in rows(folder)
        if row["step"] == kept[row["trial"]]
    }  # fmt: skip
    for index, step in kept.items():  # what a trial is known by is what its model is
        of_trial = [row for row in rows(folder) if row["trial"] == index and row["step"]]
        assert step == max(of_trial, key=lambda row: (row["eval_reward_accuracy"], -row["step"]))["step"]
        model = folder / f"trials/{index:03d}/model"
        assert json.loads((model / "training_step.json").read_text()) == {
            "step": step, "why": "highest eval_reward_accuracy",
        }  # fmt: skip
        summary = json.loads((folder / f"trials/{index:03d}/summary.json").read_text())
        assert (summary["best_step"], summary["keep_by"]) == (step, "eval_reward_accuracy")
        assert summary["held_out_pairs"] == summary["unseen_pairs"] == 200
        assert found["trials"][index]["unseen"] == next(
            row["eval_unseen_reward_accuracy"] for row in of_trial if row["step"] == step
        )
    front = [
        trial for trial, end in ends.items()
        if not any(other != end and other[0] <= end[0] and other[1] <= end[1] for other in ends.values())
    ]  # fmt: skip
    assert sorted(front) == found["front"] and found["winner"] == min(front, key=lambda trial: (ends[trial][0], trial))
    assert "eval_reward_accuracy against eval_nll" in write_sweep_report(folder).read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_an_interrupted_sweep_goes_on_to_the_same_table(
    how: signal.Signals, beside_tests: dict[str, str], tmp_path: Path
) -> None:
    """And `best.yaml`, run, gives the winner's numbers. One that is asked to end has saved what its trials had done."""
    space = {"objective.lambda": "loguniform(0.1, 4)", "optim.lr": "loguniform(1e-4, 5e-3)"}
    whole = config(tmp_path / "whole", name="sweep", space=space, trials=3)
    sweep(whole)

    # Nothing else saves a trial that is asked to end.
    every = {"checkpoint_every_steps": 8 if how == signal.SIGKILL else 1000}
    run = {**RUN, "train": RUN["train"] | every}
    own = config(tmp_path / "killed", name="sweep", space=space, trials=3, train=run)
    folder, file = own.run_dir, tmp_path / "sweep.yaml"
    file.write_text(own.to_yaml())
    command = [sys.executable, "-m", "orpo_ray.cli", "sweep", str(file)]
    with (tmp_path / "log.txt").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (any(trial["status"] == "finished" for trial in trials(folder)) and last_step(folder / "trials/002")):
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.05)
        first.send_signal(how)
        code = first.wait(timeout=120)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    if how == signal.SIGTERM:
        said = (tmp_path / "log.txt").read_text()
        assert (code, "Traceback" in said) == (130, False), said
        assert "sweep: stopping: saving a checkpoint" in said
        status, trained = trials(folder)[2]["status"], last_step(folder / "trials/002")
        if status == "stopped":  # its rung, at 8, came before the request: that ends its process, whatever it has saved
            assert trained >= 8
        else:
            saved = json.loads((folder / "trials/002/last_checkpoint.json").read_text())["step"]
            assert (status, saved) == ("unfinished", trained) and trained < 32
            assert "stopped at step" in (folder / "trials/002/log.txt").read_text()
    done = [trial["trial"] for trial in trials(folder) if trial["status"] == "finished"]
    assert done and len(done) < 3
    before = {index: (folder / f"trials/{index:03d}/metrics.jsonl").stat().st_mtime_ns for index in done}
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=beside_tests)
    assert again.returncode == 0, again.stderr[-3000:]
    assert before == {index: (folder / f"trials/{index:03d}/metrics.jsonl").stat().st_mtime_ns for index in done}
    assert (folder / "results.csv").read_text() == (whole.run_dir / "results.csv").read_text()
    assert len({row["trial"] for row in rows(folder)}) == 3
    assert (folder / "report.html").is_file()

    best = load_config(folder / "best.yaml")
    line = json.loads((train(best).path / "metrics.jsonl").read_text().splitlines()[-1])
    winner = json.loads((folder / "sweep.json").read_text())["winner"]
    table = [row for row in rows(folder) if row["trial"] == winner][-1]
    assert line["step"] == table["step"] == 32
    for key in ("eval_loss", "eval_reward_accuracy", "eval_logps_rejected"):
        assert line[key] == pytest.approx(table[key], rel=1e-6)


def test_finalists_answer_prompts_that_have_ranked_none_of_them(ray_cluster: None, tmp_path: Path) -> None:
    """And their intervals hold together: each is wider than the evaluation's own, which is of one pair alone."""
    base = train(parse_as(TrainConfig, {**RUN, "name": "base", "storage": {"path": str(tmp_path)}}, [], "test"))
    own = config(
        tmp_path, name="finals", searcher="grid", scheduler="none", space={"optim.lr": "grid(2e-3, 1e-3)"},
        overrides=["train.max_steps=16"], finalists={
            "count": 2, "against": str(base.path), "reward_model": "toy", "prompts": 50, "rounds": 2, "max_tokens": 24,
        },
    )  # fmt: skip
    folder = sweep(own).path
    found = json.loads((folder / "sweep.json").read_text())
    asked = pq.read_table(folder / "finalists/prompts.parquet").to_pylist()
    evaluated = pq.read_table(folder / f"trials/{found['winner']:03d}/eval_scores.parquet").to_pylist()
    assert len(asked) == 50 and len(evaluated) == 200
    records = yaml.safe_load((folder / "finalists/config.yaml").read_text())["prompts"]["records"]
    assert len(records) == 50 and not {*records} & {row["record"] for row in evaluated}
    pairs = json.loads((folder / "finalists/winrates.json").read_text())["pairs"]
    own_interval = {(pair["model"], pair["against"]): pair["ci95"] for pair in pairs}
    best, second = found["finalists"]
    assert best["trial"] == found["winner"] and best["win_rate"] >= second["win_rate"]
    for finalist in (best, second):
        low, high = finalist["ci95"]
        alone = own_interval[f"trial-{finalist['trial']:03d}", "against"]
        assert 0 <= low < finalist["win_rate"] < high <= 1 and high - low > 0.98 * (alone[1] - alone[0])
    assert "on prompts that ranked none of them." in write_sweep_report(folder).read_text()
