"""What Ray's memory monitor ends is told in one line of numbers, by whatever command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_ray.config import ScoreConfig, TrainConfig, parse_as

_SHORT_OF_MEMORY = """
import sys, ray
ray.init(
    "local", num_cpus=2, log_to_driver=False, include_dashboard=False,
    _system_config={"memory_usage_threshold": 0.0, "memory_monitor_refresh_ms": 50},
)
from orpo_ray.config import ScoreConfig, TrainConfig
from orpo_ray.evaluation.score import score
from orpo_ray.training.launcher import train
if sys.argv[1] == "train":
    train(TrainConfig.model_validate_json(sys.argv[2]))
else:
    score(ScoreConfig.model_validate_json(sys.argv[2]))
"""
_LOW = r"Ray has ended it, as its node \(\S+\) was low on memory: [\d.]+ of [\d.]+ GB were in use"
_TRAINED = {
    "name": "t", "model": {"name_or_path": "toy", "dtype": "float32"}, "train": {"max_steps": 3},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 120},
    "scaling": {"num_workers": 1, "cpus_per_worker": 1, "max_failures": 0},
}  # fmt: skip
_SCORED = {
    "name": "s", "reward_models": {"truth": "toy"}, "prompts": {"source": "toy-test", "limit": 40},
    "scaling": {"scorers": 1, "max_failures": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train", rf"UserError: t: {_LOW}; lower train\.tokens_per_microbatch"),
        ("score", rf"2 actors were lost \(scaling\.max_failures=1\); the last, reward_models: a scorer: {_LOW}"),
    ],
)
def test_it_is_one_line(command: str, told: str, tmp_path: Path) -> None:
    storage = {"storage": {"path": str(tmp_path)}}
    if command == "train":
        written = parse_as(TrainConfig, _TRAINED | storage, [], "test").model_dump_json(by_alias=True)
    else:
        written = parse_as(ScoreConfig, _SCORED | storage, [], "test").model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", _SHORT_OF_MEMORY, command, written],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert re.search(told, done.stderr), done.stderr[-3000:]
