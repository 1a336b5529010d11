"""Two drivers never work on one folder, and a dead one is in nobody's way."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orpo_ray.cli import main
from orpo_ray.config import EvaluationConfig
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation import evaluate
from orpo_ray.storage import driver_lock
from orpo_ray.storage.driver_lock import LOCK, has_driver, is_lost, only_driver
from orpo_ray.terminal import Console

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from orpo_ray.terminal import Console
from orpo_ray.storage import driver_lock
driver_lock._BEAT = 0.05
with driver_lock.only_driver(Path(sys.argv[1]), Console()):
    print("holds", flush=True)
    time.sleep(60)
"""
Hold = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts another process that holds a folder."""
    started = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "holds\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_BEAT", 0.05), ("_STILL", 1.0), ("_LOOK", 0.02)):
        monkeypatch.setattr(driver_lock, name, seconds)


@pytest.fixture
def abroad(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """This process cannot look up those that hold locks, as on another host."""
    monkeypatch.setattr(driver_lock, "pids_of", lambda: "another boot of another machine")


def take(folder: Path, *, wait: bool = False) -> str:
    """Hold `folder` for a moment; what was said."""
    said = io.StringIO()
    with only_driver(folder, Console(file=said), wait=wait):
        assert (folder / LOCK).is_file()
    assert not (folder / LOCK).exists()
    return said.getvalue()


def test_nothing_is_left_whatever_happens(tmp_path: Path) -> None:
    take(tmp_path / "new")
    with pytest.raises(KeyError), only_driver(tmp_path / "new", Console()):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_a_folder_that_goes_with_its_job_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("runs", "runtime_resources/working_dir_files/_ray_pkg_1/runs"):
        assert "own copy of its working directory" not in capsys.readouterr().err
        with only_driver(tmp_path / parent / "r", Console(stderr=True)):
            pass
    assert "r: storage.path is in this job's own copy of its working directory" in capsys.readouterr().err


def test_a_live_driver_is_not_joined(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path)
    before = (tmp_path / LOCK).read_text()
    with pytest.raises(UserError, match=f"another driver .*process {other.pid}.* is at work on it; wait"):
        take(tmp_path)
    assert (tmp_path / LOCK).read_text() == before
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK]


def test_a_stopped_driver_of_this_machine_is_alive(tmp_path: Path, hold: Hold, quick: None) -> None:
    other = hold(tmp_path)
    other.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    with pytest.raises(UserError):
        take(tmp_path)


def test_a_killed_drivers_lock_counts_no_longer(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as where nobody waits for it
    started = time.monotonic()
    take(tmp_path)
    other.wait()
    assert time.monotonic() - started < 2


def test_another_process_under_a_dead_drivers_number_is_no_driver(tmp_path: Path) -> None:
    held = json.loads(driver_lock._described())
    (tmp_path / LOCK).write_text(json.dumps({**held, "started": "1"}))
    take(tmp_path)


def test_a_driver_on_another_host_is_known_by_its_beat(tmp_path: Path, hold: Hold, abroad: None) -> None:
    other = hold(tmp_path)
    with pytest.raises(UserError, match="at work on it"):
        take(tmp_path)
    other.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    assert "waiting to see" in take(tmp_path)
    assert time.monotonic() - started < 3
    other.send_signal(signal.SIGCONT)  # its folder was another's meanwhile, and is free again: nothing to end for


def test_one_that_died_on_another_host_long_ago_makes_nobody_wait(tmp_path: Path, abroad: None) -> None:
    (tmp_path / LOCK).write_text("")  # killed while it wrote
    os.utime(tmp_path / LOCK, (0, 0))
    assert take(tmp_path) == ""


def test_whoever_is_to_wait_waits(tmp_path: Path, hold: Hold, quick: None) -> None:
    other = hold(tmp_path)
    threading.Timer(0.5, other.kill).start()
    assert "waiting to see" in take(tmp_path, wait=True)


def test_a_driver_whose_folder_was_taken_ends(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path)
    taken = tmp_path / "taken"
    taken.write_text("another's")
    taken.rename(tmp_path / LOCK)
    _, said = other.communicate(timeout=20)
    assert "another driver has taken it over; this one ends" in said
    assert other.returncode == -signal.SIGTERM
    assert (tmp_path / LOCK).read_text() == "another's"


def test_it_knows_that_the_folder_is_no_longer_its_own(tmp_path: Path, quick: None) -> None:
    """What it would save on its way out would be written into another's run."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with only_driver(tmp_path, Console()):
            time.sleep(0.2)
            assert not is_lost(tmp_path) and has_driver(tmp_path)
            (tmp_path / LOCK).write_text("another's")
            deadline = time.monotonic() + 5
            while not is_lost(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert has_driver(tmp_path) is None, "somebody's"


def test_storage_that_fails_ends_no_driver(tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "run"
    with only_driver(folder, Console()):
        folder.rename(tmp_path / "away")
        time.sleep(0.2)
        (tmp_path / "away").rename(folder)
        before = (folder / LOCK).stat().st_mtime_ns
        time.sleep(0.2)
        assert (folder / LOCK).stat().st_mtime_ns > before


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.long)])
def test_of_many_that_find_a_dead_drivers_lock_one_takes_it(tmp_path: Path, quick: None, times: int) -> None:
    many = 8
    for _ in range(times):
        (tmp_path / LOCK).write_text(json.dumps({**json.loads(driver_lock._described()), "started": "1"}))
        begin, tried = threading.Barrier(many), threading.Barrier(many)

        def one(begin: threading.Barrier = begin, tried: threading.Barrier = tried) -> int:
            begin.wait()
            try:
                with only_driver(tmp_path, Console(file=io.StringIO())):
                    tried.wait()
                    return 1
            except UserError:
                tried.wait()
                return 0

        with ThreadPoolExecutor(many) as pool:
            assert sum(pool.map(lambda _: one(), range(many))) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "config"), [("train", "configs/toy-base.yaml"), ("sweep", "configs/toy-sweep.yaml")]
)
def test_a_command_is_refused_in_one_line(
    command: str, config: str, tmp_path: Path, hold: Hold, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main([command, str(ROOT / config), "name=run", f"storage.path={tmp_path}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{tmp_path / 'run'}: another driver" in said


def test_an_evaluation_is_refused(tmp_path: Path, hold: Hold) -> None:
    (folder := tmp_path / "e").mkdir()
    hold(folder)
    given = tmp_path / "given.json"
    given.write_text(json.dumps([{"prompt": next(iter(toyworld.records("toy-test")))["prompt"], "response": "So."}]))
    config = EvaluationConfig.model_validate({
        "name": "e", "models": {"a": str(given)}, "prompts": {"source": str(given), "format": "prompts"},
        "reward_models": {"truth": "toy"}, "storage": {"path": str(tmp_path)},
    })  # fmt: skip
    with pytest.raises(UserError, match="another driver"):
        evaluate.evaluate(config)
    assert list(folder.iterdir()) == [folder / LOCK]
