"""Which devices engines and scorers are given, by a real Ray on a cluster that declares GPUs: there are none here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Seat = dict[str, Any]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By `placement_process.py`."""
    folder = tmp_path_factory.mktemp("evaluation")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_"))}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("placement_process.py")), str(folder)],
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


@pytest.fixture(scope="module")
def found(read: dict[str, Any]) -> dict[str, Any]:
    """Who stood where."""
    assert read["nodes"] == [[8.0, 4.0]] * 2
    for name, case in read["found"].items():
        assert case["left"] == 8, f"{name}: what was given was given back"
    cases: dict[str, Any] = read["found"]
    return cases


def devices(seats: list[Seat]) -> list[tuple[str, str]]:
    """Of each seat the node and the ids that Ray has given, which are those that CUDA sees."""
    for seat in seats:
        assert seat["gpus"] == seat["visible"].split(",")
    return [(seat["node"], gpu) for seat in seats for gpu in seat["gpus"]]


def test_two_engines_of_four_and_a_scorer_leave_no_gpu_idle(found: dict[str, Any]) -> None:
    case = found["by four"]
    (workers, alone), [scorer] = case["engines"], case["scorers"]
    first, second = devices(workers), devices([alone])
    assert len({*first, *second}) == 8
    assert len({node for node, _ in first}) == len({node for node, _ in second}) == 1
    assert devices([scorer]) == first[:1], "the scorer shares the first engine's first"
    assert case["own"][0]["gpus"] == [] and case["own"][0]["visible"] is None, "its workers compute, it looks on"


def test_an_engine_that_comes_later_has_the_same_gpus_beside_the_same_scorer(found: dict[str, Any]) -> None:
    [again], first = found["by four"]["again"], found["by four"]["engines"][0]
    assert devices(again) == devices(first)
    assert devices(found["by four"]["scorers"]) == devices(again[:1])


def test_an_engine_over_nodes_has_a_gpu_for_each_worker(found: dict[str, Any]) -> None:
    [workers], [scorer] = found["over nodes"]["engines"], found["over nodes"]["scorers"]
    assert len({*devices(workers), *devices([scorer])}) == 5 + 1
    assert len({node for node, _ in devices(workers)}) == 2


def test_beside_training_engine_and_scorer_share_one_gpu(found: dict[str, Any]) -> None:
    [engine], [scorer] = found["beside training"]["engines"], found["beside training"]["scorers"]
    assert devices([engine]) == devices([scorer])


def test_on_cpus_of_a_machine_with_gpus_nobody_sees_one(found: dict[str, Any]) -> None:
    case = found["on CPUs"]
    for seat in [*case["engines"], *case["scorers"]]:
        assert seat["gpus"] == [] and seat["visible"] == ""


def test_a_scorer_that_shares_a_gpu_begins_when_the_engine_is_there(read: dict[str, Any]) -> None:
    """An engine counts as its own what others take of a GPU as it starts."""
    assert read["evaluated"]["begun"] == [["engine", 0], ["scorer", 512]]
    rewards = read["evaluated"]["rewards"]
    assert len(rewards) == 40 * 3 and None not in rewards
