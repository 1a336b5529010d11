"""Benchmarks of rollouts: what docs/rlhf.md quotes is in the results, a part of the runs publishes nothing, and no line
of a run is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import rlhf_own  # noqa: E402
import rlhf_work  # noqa: E402
import rlhf_world  # noqa: E402

PUBLISHED: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "rlhf_world.json").read_text())
RATE = re.compile(r"(\d+\.\d) %,?(?: over the three)? \((\d+\.\d) to\s+(\d+\.\d) %")


def test_every_interval_that_is_quoted_is_in_the_results() -> None:
    section = (ROOT / "docs" / "rlhf.md").read_text().partition("## In the embedded world")[2]
    quoted = {tuple(map(float, rate)) for rate in RATE.findall(section)}
    rates = [rate for row in PUBLISHED["models"].values() for key, rate in row.items() if key.startswith("over_")]
    known = {tuple(round(100 * part, 1) for part in rate) for rate in [*rates, *PUBLISHED["ppo_over_seeds"].values()]}
    assert len(quoted) > 25 and not quoted - known


def test_all_are_compared_with_each_baseline() -> None:
    for name, row in PUBLISHED["models"].items():
        found = {key for key in row if key.startswith("over_")}
        others = [other for other in rlhf_world.BASELINES if other != name]
        assert found == {f"over_{other}_by_{judge}" for other in others for judge in ("reward", "truth")}


def test_the_results_follow_from_what_the_evaluation_found() -> None:
    models = ["sft", "dpo", "orpo", *(f"ppo-{seed}" for seed in rlhf_world.SEEDS)]
    winrates = {
        "models": models,
        "rewards": {"truth": {name: {"mean": place} for place, name in enumerate(models)}},
        "ratings": {"truth": [{"model": name, "rating": 1500, "ci95": [1400, 1600]} for name in models]},
        "pairs": [
            {"model": a, "against": b, "reward_model": judge, "win_rate": 0.5 + place / 100, "ci95": [0.4, 0.7]}
            for judge in ("truth", "reward") for place, a in enumerate(models) for b in models if a != b
        ],
    }  # fmt: skip
    found = rlhf_world.results(rlhf_world.table(winrates), {})
    assert found["models"]["ppo-2"]["over_orpo_by_truth"] == [0.54, 0.4, 0.7]
    assert "over_ppo-1_by_truth" not in found["models"]["dpo"]
    assert found["ppo_over_seeds"]["over_dpo_by_truth"][0] == pytest.approx(0.54)
    assert rlhf_world.results({"ppo-1": {}}, {})["ppo_over_seeds"] == {}


def test_a_part_of_the_runs_publishes_nothing(tmp_path: Path) -> None:
    assert rlhf_world.written(["ppo-1"], tmp_path) == (tmp_path / "rlhf_world.json", tmp_path / "rlhf-world.png")
    assert all(path.is_file() for path in rlhf_world.written(list(rlhf_world.RUNS), tmp_path))


def test_what_a_run_wrote_at_its_end_is_read(tmp_path: Path) -> None:
    """Though it ended before it was looked at."""
    work = rlhf_work.Work("rloo", "", "", rounds=3, samples=8, epochs=1)
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0, "rollout_seconds": float(step)} for step in (1, 2, 3)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with subprocess.Popen(["true"]) as process:
        process.wait()
        rounds = rlhf_own._rounds(metrics, work, process)
    assert work.updates_of_a_round == 1 and [each.generation_seconds for each in rounds] == [2, 3]
    metrics.write_text("")
    assert rlhf_own._rounds(metrics, work, process) == []
