"""A benchmark through Ray: whole runs in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_whole_runs_through_ray_beside_the_bare_loop(tmp_path: Path) -> None:
    benchmark = {
        "name": "toy",
        "run": {
            "model": {"name_or_path": "toy", "init": "random", "dtype": "float32"},
            "data": {"train": "toy", "limit": 100, "max_length": 60, "max_prompt_length": 40},
            "train": {"global_batch_size": 4},
        },
        "contestants": {"orpo_ray": {"trainer": "orpo_ray"}, "ray": {"trainer": "ray"}},
        "turns": "runs", "repeats": 2, "steps": 2, "warm_up": 1,
        "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(benchmark))
    command = [sys.executable, "-m", "orpo_ray.cli", "bench", str(tmp_path / "bench.yaml"), "--out", str(tmp_path)]
    marked = {**os.environ, "ORPO_RAY_TEST": str(tmp_path)}  # whoever descends from the command has it
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=marked)
    assert done.returncode == 0, done.stderr
    contestants = json.loads((tmp_path / "toy.json").read_text())["contestants"]
    bare, ray = contestants["orpo_ray"]["rounds"], contestants["ray"]["rounds"]
    assert ray["tokens"] == bare["tokens"] == bare["tokens"][:2] * 2
    assert len(contestants["orpo_ray"]["rounds"]["parts"]) == 2 * 3
    assert ray["peak_bytes"] == [None] * 4 and all(size > 2**28 for size in ray["resident_bytes"])
    lines = [json.loads(line) for line in (tmp_path / "toy-ray/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["tokens"] for line in steps[1:]] == ray["tokens"][2:]  # the warm-up step is left out
    assert ray["seconds"][2:] == pytest.approx([4 / line["pairs_per_second"] for line in steps[1:]])
    assert [process for process in psutil.process_iter() if environment(process).get("ORPO_RAY_TEST")] == []


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
