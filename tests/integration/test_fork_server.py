"""Workers that are forked from a process with their imports are as fresh ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpo_ray.cluster import setup_worker
from orpo_ray.cluster.connection import ENGINES, OF_WORKERS, TRIALS
from orpo_ray.cluster.fork_server import ForkServer

JOB = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "1"}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """One that is no copy of pytest's process, in which torch has threads."""
    server = ForkServer(("numpy",), ("torch",), ("statistics",), copy=False)
    yield server
    server.stop()


@pytest.fixture
def start(server: ForkServer, tmp_path: Path) -> Iterator[Start]:
    """Starts what a script says as Ray starts a worker, past the runtime environment's agent."""
    started = []

    def begin(script: str, *arguments: str, path: str = server.path, **environment: str) -> subprocess.Popen[str]:
        file = tmp_path / "worker.py"
        file.write_text(script)
        context = {"env_vars": {"ORPO_RAY_FORK_SERVER": path, "GIVEN": "${HOME}/x"}, "py_executable": sys.executable}
        words = [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
        process = subprocess.Popen(
            [sys.executable, setup_worker.__file__, str(file), *arguments, *words], stdout=subprocess.PIPE, text=True,
            env=os.environ | JOB | environment, cwd=tmp_path,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


TELL = """
import json, os, sys
print(json.dumps({
    "forked": "torch" in sys.modules, "arguments": sys.argv[1:], "folder": os.getcwd(), "given": os.environ["GIVEN"],
    "own": os.environ.get("OWN"), "path": sys.path[0], "group": os.getpgid(0) == os.getpid(), "name": __name__,
    "random": __import__("random").random(), "files": sorted(os.listdir("/proc/self/fd"))[:6],
}))
sys.exit(7)
"""


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.communicate(timeout=60)[0])
    return found


def test_a_worker_finds_what_a_fresh_process_would(start: Start, tmp_path: Path) -> None:
    process = start(TELL, "--one", "two words", OWN="1")
    found = told(process)
    assert process.returncode == 7
    assert found["forked"] and found["name"] == "__main__" and found["group"]
    assert found["arguments"] == ["--one", "two words"]
    assert Path(found["folder"]) == Path(found["path"]) == tmp_path
    assert found["given"] == f"{os.environ['HOME']}/x" and found["own"] == "1"
    assert found["random"] != told(start(TELL, OWN="1"))["random"]


@pytest.mark.parametrize("other", [{"RAY_JOB_ID": "02000000"}, {"RAY_RAYLET_PID": "2"}])
def test_a_worker_of_another_job_is_a_plain_process(start: Start, other: dict[str, str]) -> None:
    assert told(start(TELL))["forked"]
    process = start(TELL, **other)
    assert not told(process)["forked"] and process.returncode == 7
    assert told(start(TELL))["forked"]


def test_where_there_is_no_server_a_worker_is_a_plain_process(start: Start, tmp_path: Path) -> None:
    process = start(TELL, path=str(tmp_path / "nothing"))
    assert not told(process)["forked"] and process.returncode == 7


SLEEP = """
import os, time
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
time.sleep(600)
"""


def test_who_is_ended_takes_its_worker_along(start: Start) -> None:
    """And what that has started: Ray ends what it started, which is the process that asked."""
    process = start(SLEEP)
    assert process.stdout is not None
    worker_and_child = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    process.kill()
    alive = psutil.wait_procs(worker_and_child, timeout=30)[1]
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_workers_that_end_with_those_who_asked_leave_the_next_alone(start: Start, server: ForkServer) -> None:
    """Both ends are seen at once, and a new request may have a descriptor of the old one."""
    old = [start(SLEEP) for _ in range(4)]
    pids = [int(word) for process in old if process.stdout is not None for word in process.stdout.readline().split()]
    serving = psutil.Process(pids[0]).parent()
    assert serving is not None
    serving.suspend()
    try:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)  # so that this is seen before
        for process in old:
            process.kill()
        new = [start(TELL) for _ in range(8)]
        time.sleep(1)  # until all of them wait
    finally:
        serving.resume()
    assert [told(process)["forked"] for process in new] == [True] * 8
    assert [process.returncode for process in new] == [7] * 8


def test_a_worker_that_dies_is_told_of(start: Start) -> None:
    process = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_nothing_of_it_is_left_and_workers_go_on(start: Start, tmp_path: Path) -> None:
    server = ForkServer((), (), (), copy=False)
    folder = Path(server.path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    worker = start("import time\nprint(1, flush=True)\ntime.sleep(2)\nprint(2)", path=server.path)
    assert worker.stdout is not None and worker.stdout.readline() == "1\n"
    server.stop()
    assert not folder.exists()
    assert worker.communicate(timeout=60)[0] == "2\n"


def test_a_module_that_cannot_be_imported_leaves_plain_processes(start: Start) -> None:
    server = ForkServer(("no_such_module",), (), (), copy=False)
    process = start(TELL, path=server.path)
    assert not told(process)["forked"] and process.returncode == 7
    server.stop()


DRAW = """
import sys
from ray._raylet import JobID, PlacementGroupID
print("orpo_ray.tuning.trial" in sys.modules, PlacementGroupID.of(JobID.from_int(1)).hex())
"""


def test_workers_draw_ids_of_their_own(start: Start) -> None:
    """With all that any command has imported for its workers: Ray's ids of two of them must not be the same."""
    server = ForkServer((), [*OF_WORKERS, *TRIALS, *ENGINES], (), copy=False)
    drawn = [start(DRAW, path=server.path).communicate(timeout=120)[0].split() for _ in range(4)]
    server.stop()
    assert {forked for forked, _ in drawn} == {"True"}
    assert len({ids for _, ids in drawn}) == 4


def test_where_ids_have_been_drawn_before_workers_are_plain_processes(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from ray._raylet import JobID, PlacementGroupID\nPlacementGroupID.of(JobID.from_int(1))\nimport torch\n"
    (tmp_path / "draws.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = ForkServer((), ("draws",), (), copy=False)
    assert not told(start(TELL, path=server.path))["forked"]
    server.stop()


COMPUTE = """
import sys
import torch
torch.set_num_threads(1)
torch.manual_seed(3)
layer = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
for _ in range(20):
    layer(torch.randn(96, 64)).square().mean().backward()
    optimizer.step()
print("".join(p.detach().numpy().tobytes().hex() for p in layer.parameters()))
"""


def test_the_same_bits(start: Start, tmp_path: Path) -> None:
    forked = start(COMPUTE).communicate(timeout=60)[0]
    plain = start(COMPUTE, path=str(tmp_path / "nothing")).communicate(timeout=60)[0]
    assert len(forked) > 1000 and forked == plain
    again = start(COMPUTE).communicate(timeout=60)[0]
    assert again == plain
