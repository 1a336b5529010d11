"""`orpo-ray doctor` on a real cluster of two nodes: it is kept out without the token, and finds what differs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "5" * 32


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a process that belongs to it. Its second node has another DeepSpeed, as far as is told."""
    other = tmp_path_factory.mktemp("packages")
    (other / "deepspeed-9.9.9.dist-info").mkdir()
    (other / "deepspeed-9.9.9.dist-info" / "METADATA").write_text("Name: deepspeed\nVersion: 9.9.9\n")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # what Ray puts there are sockets, whose paths are bounded
        environment = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
            "RAY_TMPDIR": short,
        }  # fmt: skip
        script = Path(__file__).with_name("cluster_process.py")
        process = subprocess.Popen(
            [sys.executable, str(script), f"{other}:{REPOSITORY}"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        yield {**environment, "RAY_ADDRESS": process.stdout.readline().strip()}
        process.communicate("")


def doctor(environment: dict[str, str], storage: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "orpo_ray.cli", "doctor", "configs/toy-orpo.yaml", f"storage.path={storage}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_wrong_token_is_named(cluster: dict[str, str], tmp_path: Path) -> None:
    code, told = doctor({**cluster, "RAY_AUTH_TOKEN": "7" * 32}, tmp_path)
    assert code == 1
    assert "refuses: the token of this machine is not the cluster's" in told
    assert len(told.splitlines()) == 2, "nothing else can be looked at"


def test_nodes_are_compared_and_reach_each_other(cluster: dict[str, str], tmp_path: Path) -> None:
    code, told = doctor(cluster, tmp_path / "runs")
    assert code == 1
    failed = [line for line in told.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "deepspeed differs: " in failed[0] and "9.9.9 on " in failed[0]
    assert "OK    token          asked for by the cluster" in told
    assert f"{tmp_path}/runs can be written from 2 nodes, and seen by all" in told
    assert "gloo between 2 processes works" in told
    assert "the run wants 2 workers of 1 CPUs; the cluster has 2 CPUs" in told
    assert list(tmp_path.iterdir()) == []
