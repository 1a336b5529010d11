"""A cluster that `orpo-ray` starts by itself is out of reach from other machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

RUN: dict[str, Any] = {
    "name": "toy",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 600},
    "train": {"epochs": 9, "max_steps": 20, "global_batch_size": 32},
    "scaling": {"num_workers": 2},
}
WORKER = re.compile(r"ray::(RayTrainWorker|execute)")  # a worker's title, by its class and by the call it is in
STORE = "torch's rendezvous of the workers, which cannot be told where to listen"


def listeners(process: psutil.Process) -> set[tuple[int, str, str]]:
    """Process id, name and address of whatever listens in a process and those that it has started."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {
                (one.pid, Path((one.cmdline() or [""])[0]).name, connection.laddr.ip)
                for connection in one.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
        except psutil.Error:
            continue
    return found


def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    """But for the store through which torch's workers find each other: rank 0's, while a run trains."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**RUN, "storage": {"path": str(tmp_path)}}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "VLLM_"))}
    with (tmp_path / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "orpo_ray.cli", "train", str(file)]
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    seen: set[tuple[int, str, str]] = set()
    try:
        while driver.poll() is None:
            seen |= listeners(psutil.Process(driver.pid))
            time.sleep(0.3)
    finally:
        driver.kill()
    assert driver.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    names = {name for _, name, _ in seen}
    assert "gcs_server" in names and any(WORKER.match(name) for name in names)
    beyond = {(pid, name) for pid, name, ip in seen if ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")}
    assert len({pid for pid, _ in beyond}) <= 1 and all(WORKER.match(name) for _, name in beyond), (STORE, beyond)
