"""Trackers: real ones where they are installed, and one that fails; training is told of neither."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secret_scan import leaks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.telemetry import trackers
from orpo_ray.telemetry.trackers import Beside, require_trackers
from orpo_ray.training.recorder import Recorder

Line = dict[str, Any]


def config(storage: Path, *overrides: str) -> TrainConfig:
    mapping = {
        "name": "tracked", "model": {"name_or_path": "toy"}, "storage": {"path": str(storage)},
        "data": {"train": "https://me:hunter2-and-more@127.0.0.1:9/pairs.jsonl"},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


def record(run: TrainConfig, resumed_at: int, last: int) -> RunFolder:
    """Write the lines of steps `resumed_at + 1` to `last`, an evaluation every second step."""
    folder = RunFolder(run.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder, run, resumed_at=resumed_at)
    for step in range(resumed_at + 1, last + 1):
        recorder.write({"step": step, "loss": 10.0 - step, "lr": 1e-3, "skipped": [1, 2]})
        if step % 2 == 0:
            recorder.write({"step": step, "eval_loss": 20.0 - step})
    recorder.close()
    return folder


class Memory:
    def __init__(self, failures: int = 0) -> None:
        self.lines: list[Line] = []
        self.failures = failures
        self.closed = False

    def log(self, line: Line) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server\nis down")
        self.lines.append(line)

    def close(self) -> None:
        self.closed = True


class TestBeside:
    def test_lines_wait_for_a_server_that_is_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers, "_SECONDS_BETWEEN_TRIES", 0.0)
        notes: list[str] = []
        memory = Memory(failures=3)
        tracker = Beside("wandb", lambda: memory, (-1, -1), notes.append)
        for step in range(1, 9):
            tracker.log({"step": step, "loss": 1.0})
            time.sleep(0.01)
        tracker.close()
        assert [line["step"] for line in memory.lines] == list(range(1, 9))
        assert notes == ["wandb does not take metrics, and is tried again: the server is down"]
        assert memory.closed

    def test_one_that_never_answers_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers, "_SECONDS_TO_CLOSE", 0.2)
        notes: list[str] = []

        def start() -> Memory:
            time.sleep(30)
            return Memory()

        tracker = Beside("mlflow", start, (-1, -1), notes.append)
        started = time.monotonic()
        tracker.log({"step": 1, "loss": 1.0})
        tracker.close()
        assert time.monotonic() - started < 5
        assert notes == ["mlflow was not told the last 1 lines of metrics"]

    def test_one_that_cannot_begin_costs_a_try_now_and_then(self) -> None:
        notes: list[str] = []
        tries: list[int] = []

        def start() -> Memory:
            tries.append(1)
            raise RuntimeError("no key")

        tracker = Beside("wandb", start, (-1, -1), notes.append)
        for step in range(1, 50):
            tracker.log({"step": step, "loss": 1.0})
        tracker.close()
        assert len(tries) == 2, "the first, and the last"
        assert notes[0].endswith("no key") and notes[1] == "wandb was not told the last 49 lines of metrics"


def test_a_package_that_is_missing_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trackers: wandb is not installed; pip install 'orpo_ray\[trackers\]'"):
        require_trackers(("tensorboard", "wandb"))
    require_trackers(("tensorboard",))


def test_which_trackers_there_are_does_not_make_another_run(tmp_path: Path) -> None:
    plain, other = config(tmp_path), config(tmp_path, "trackers=[]")
    assert plain.trackers == ("tensorboard",) and plain.digest() == other.digest()
    RunFolder(plain.run_dir).open_for(plain)
    RunFolder(plain.run_dir).open_for(other)
    with pytest.raises(UserError, match=r"trackers\.0: .*'tensorboard', 'wandb' or 'mlflow'"):
        config(tmp_path, "trackers=[comet]")


def test_no_step_is_told_twice_however_often_a_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Line] = []
    names: list[str] = []

    class Kept(Memory):
        def __init__(self, config: TrainConfig, folder: Path, identity: str) -> None:
            super().__init__()
            self.lines = told
            names.append(identity)

    monkeypatch.setattr(trackers, "Wandb", Kept)
    monkeypatch.setattr(trackers, "require_trackers", lambda names: None)
    run = config(tmp_path, "trackers=[wandb]")
    record(run, 0, 5)
    record(run, 2, 3)  # interrupted before it came as far as before
    folder = record(run, 2, 7)
    assert [line["step"] for line in told if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in told if "eval_loss" in line] == [2, 4, 6]
    assert len(set(names)) == 1 and names[0].startswith("tracked-")
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()].count(5) == 1


def test_tensorboard_alone_leaves_nothing_else(tmp_path: Path) -> None:
    folder = record(config(tmp_path), 0, 4)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [(2, 18.0), (4, 16.0)]
    assert sorted(path.name for path in folder.path.iterdir()) == ["metrics.jsonl", "tensorboard"]


SECRETS = {"key": "0123456789abcdef0123456789abcdef01234567", "password": "hunter2-and-more"}


class TestWandb:
    def test_offline_and_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_API_KEY", SECRETS["key"])
        monkeypatch.setattr(sys, "argv", ["orpo-ray", "train", f"data.train=https://me:{SECRETS['password']}@host/x"])
        run = config(tmp_path, "trackers=[wandb]")
        record(run, 0, 5)
        time.sleep(1)  # W&B names a run's folder by the second
        folder = record(run, 2, 7)
        assert not folder.events.exists()
        tries = sorted((folder.path / "wandb").glob("offline-run-*"))
        identity = json.loads((folder.path / "trackers.json").read_text())["id"]
        assert len(tries) == 2 and all(part.name.endswith(identity) for part in tries)
        told = [line for part in tries for line in history(next(part.glob("*.wandb")))]
        steps = [line["_step"] for line in told if "train/loss" in line]
        assert steps == [1, 2, 3, 4, 5, 6, 7]
        assert {line["_step"]: line["eval/loss"] for line in told if "eval/loss" in line} == {2: 18, 4: 16, 6: 14}
        assert leaks(folder.path, SECRETS) == []


def history(file: Path) -> list[Line]:
    """What was logged, out of W&B's own file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    lines = []
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


def log_records(data: bytes) -> Iterator[bytes]:
    """Each lies in pieces (sum, length, kind), none of which crosses a block of 32 KiB; the file's head is 7 bytes."""
    block, head = 1 << 15, 7
    at, whole = head, b""
    while at + head <= len(data):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + head])
        whole += data[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real one on loopback, with its own database."""
    pytest.importorskip("mlflow.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{tmp_path}/artifacts",
    ]  # fmt: skip
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, 15)
    server.wait()


class TestMlflow:
    def test_a_run_is_continued_on_a_server(
        self, tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.tracking import MlflowClient

        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "unit")
        run = config(tmp_path / "runs", "trackers=[mlflow]")
        record(run, 0, 5)
        folder = record(run, 2, 7)
        assert not folder.events.exists(), folder.events.read_text()
        client = MlflowClient()
        (found,) = client.search_runs([client.get_experiment_by_name("unit").experiment_id])
        history = client.get_metric_history(found.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [(step, 10.0 - step) for step in range(1, 8)]
        assert [point.step for point in client.get_metric_history(found.info.run_id, "eval/loss")] == [2, 4, 6]
        assert (found.info.run_name, found.info.status) == ("tracked", "FINISHED")
        assert found.data.params["objective.lambda"] == "0.1"
        assert found.data.params["data.train"] == "https://me:***@127.0.0.1:9/pairs.jsonl"
        assert leaks(folder.path, SECRETS) == []
        assert leaks(tmp_path / "artifacts", SECRETS) == []

    def test_a_server_that_is_down_is_noted_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setattr(trackers, "_SECONDS_TO_CLOSE", 30.0)
        folder = record(config(tmp_path, "trackers=[mlflow]"), 0, 4)
        events = [json.loads(line)["event"] for line in folder.events.read_text().splitlines()]
        assert [event.partition(" does not")[0] for event in events[:1]] == ["mlflow"]
        assert events[1:] == ["mlflow was not told the last 6 lines of metrics"]
        assert len(folder.metrics.read_text().splitlines()) == 6
