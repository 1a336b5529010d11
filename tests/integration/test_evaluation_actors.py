"""Actors that Ray ends, and actors that no node has room for."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orpo_ray.cluster import waiting
from orpo_ray.config import ScoreConfig, parse_as
from orpo_ray.evaluation import progress
from orpo_ray.evaluation.score import score
from orpo_ray.terminal import Console

_SHORT_OF_MEMORY = """
import sys, ray
ray.init(
    num_cpus=1, log_to_driver=False, include_dashboard=False,
    _system_config={"memory_usage_threshold": 0.0, "memory_monitor_refresh_ms": 50},
)
from orpo_ray.config import ScoreConfig
from orpo_ray.evaluation.score import score
score(ScoreConfig.model_validate_json(sys.argv[1]))
"""


def config_of(folder: Path, **settings: Any) -> ScoreConfig:
    mapping = {
        "name": "s", "reward_models": {"truth": "toy"}, "prompts": {"source": "toy-test", "limit": 40},
        "storage": {"path": str(folder)}, **settings,
    }  # fmt: skip
    return parse_as(ScoreConfig, mapping, [], "test")


def test_an_actor_that_the_memory_monitor_ends_counts_as_lost(tmp_path: Path) -> None:
    config = config_of(tmp_path, scaling={"scorers": 1, "max_failures": 1})
    done = subprocess.run(
        [sys.executable, "-c", _SHORT_OF_MEMORY, config.model_dump_json()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    last = done.stderr.rpartition("RuntimeError: ")[2]
    assert last.startswith("2 actors were lost; the last, reward_models: a scorer: "), done.stderr[-3000:]
    assert "running low on memory" in last


def test_what_waits_for_room_is_said_and_goes_on_when_there_is_some(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Hog:
        def is_here(self) -> bool:
            return True

    monkeypatch.setattr(progress, "saying_what_waits", partial(waiting.saying_what_waits, seconds=2))
    [(cpus, _)] = waiting.node_places()
    hog = ray.remote(num_cpus=cpus)(Hog).remote()
    assert ray.get(hog.is_here.remote(), timeout=60) and not waiting.waits_for_room(hog)
    said = io.StringIO()
    thread = threading.Thread(target=score, args=(config_of(tmp_path), Console(file=said, width=500)))
    thread.start()
    try:
        line = f"s: not started for 2 s, for want of room: 1 of 1 scorer ({cpus:.0f} CPUs each); the largest of 1 node"
        for _ in range(300):
            if line in said.getvalue():
                break
            thread.join(0.1)
        assert line in said.getvalue()
    finally:
        ray.kill(hog)
        thread.join(120)
    assert (tmp_path / "s/scores.json").is_file()
