"""A run whose checkpoints and copy are on an S3-compatible server of which 5 % of the requests fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import yaml
from secret_scan import leaks

from orpo_ray.config import load_config
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training.launcher import train

SERVER = Path(__file__).with_name("s3_server.py")
FAILING = 0.05
RUN: dict[str, Any] = {
    "name": "on-s3",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 600},
    "optim": {"lr": 1e-3, "warmup_steps": 5},
    "train": {
        "epochs": 9,
        "max_steps": 24,
        "global_batch_size": 32,
        "eval_every_steps": 12,
        "checkpoint_every_steps": 4,
    },
    "scaling": {"num_workers": 2},
}


class Server:
    def __init__(self, folder: Path) -> None:
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, str(SERVER), str(FAILING), "0"], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._log.read_text().endswith("\n"):
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        self.port = int(self._log.read_text().split()[0])

    @property
    def failed(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if line.startswith("failed")]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-someone")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = Server(tmp_path)
    yield found
    found.stop()


class Removing:
    """A filesystem on which what is opened is removed before it is read, as a run retains its checkpoints."""

    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        found = self._filesystem.open_input_stream(path)
        self._filesystem.delete_file(path)
        return found


def test_a_checkpoint_removed_while_it_is_looked_at_is_none(server: Server) -> None:
    options = f"scheme=http&endpoint_override=127.0.0.1:{server.port}&region=us-east-1&allow_bucket_creation=true"
    checkpoints = Checkpoints(f"s3://seen/run?{options}")
    checkpoints.filesystem.create_dir("seen")
    for step in (1, 2):
        checkpoints.open(step)
        checkpoints.commit(Manifest(step, {}, step, "", "", None, {}))
    assert [manifest.step for manifest in checkpoints.finished()] == [2, 1]
    checkpoints.filesystem = Removing(checkpoints.filesystem)
    assert checkpoints.finished() == []


def read_again(filesystem: pafs.FileSystem, path: str) -> bytes:
    """A file, asked for again where an answer ends in its middle."""
    for _ in range(9):
        with contextlib.suppress(OSError), filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content
    raise AssertionError(f"{path} cannot be read")


def test_a_run_goes_on_from_its_copy_where_requests_fail(server: Server, tmp_path: Path, ray_cluster: None) -> None:
    """Interrupted once, its folder and the copy's model lost: it goes on elsewhere, every checkpoint that it leaves is
    whole, it ends as one on a local disk does, and the copy is its folder."""
    options = f"scheme=http&endpoint_override=127.0.0.1:{server.port}&region=us-east-1"
    buckets, _ = pafs.FileSystem.from_uri(f"s3://runs?{options}&allow_bucket_creation=true")
    buckets.create_dir("runs")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(RUN))
    command = [sys.executable, "-m", "orpo_ray.cli", "train", str(file)]
    remote = [*command, f"storage.mirror=s3://runs/ours?{options}"]
    checkpoints = Checkpoints(f"s3://runs/ours/on-s3/checkpoints?{options}")

    with (tmp_path / "log.txt").open("wb") as log:
        first = subprocess.Popen(
            [*remote, f"storage.path={tmp_path / 'lost'}"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not any(manifest.state["best_step"] for manifest in checkpoints.finished()):
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(1)  # each look is some ten requests to a server that the run needs
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=120) == 130, (tmp_path / "log.txt").read_text()[-3000:]
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    before = checkpoints.steps()
    buckets.delete_file("runs/ours/on-s3/model/training_step.json")
    folder = tmp_path / "remote/on-s3"
    again = subprocess.run(
        [*remote, f"storage.path={folder.parent}"], capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"{folder}: fetching its copy from s3://runs/ours/on-s3" in again.stderr
    assert "the model of step 12 is lost; that of step" in again.stderr

    finished = checkpoints.finished()
    assert [manifest.step for manifest in finished] == [24, 20] and before[0] < 24
    for manifest in finished:
        assert checkpoints.damage(manifest, manifest.files) is None
    print(f"{len(server.failed)} requests failed")
    assert len(server.failed) >= 5
    assert {"GET", "PUT"} <= {line.split()[1] for line in server.failed}
    assert leaks(folder.parent, {"AWS_SECRET_ACCESS_KEY": "secret-of-someone"}) == []
    local = train(load_config(file, [f"storage.path={tmp_path / 'local'}"])).path
    ours, theirs = folder / "model/model.safetensors", local / "model/model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()
    for name in ("metrics.jsonl", "summary.json", "report.html", "model/model.safetensors", "model/training_step.json"):
        assert read_again(buckets, f"runs/ours/on-s3/{name}") == (folder / name).read_bytes(), name
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 25))
