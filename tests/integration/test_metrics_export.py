"""What Prometheus would scrape from a Ray node while a run, an evaluation and a sweep go on."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from pathlib import Path

from orpo_ray.telemetry import metrics

_SECONDS = 60.0  # Ray sends them on every few, see `ray_cluster`
_FORGOTTEN = 20.0  # by then it has forgotten a gauge that was set once, after two of these times


def scraped(port: int) -> dict[str, float]:
    """Values by name and tags that are ours: `name{run="x"}`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^ray_(orpo_ray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = sorted(re.findall(r'((?:run|trial|model|status|metric)="[^"]*")', labels))
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def test_the_nodes_endpoint_has_the_values(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    run, trial = tmp_path / "scraped", tmp_path / "swept" / "trials" / "003"
    metrics.training_line(run, {"step": 0, "eval_loss": 3.0})
    metrics.training_line(run, {"step": 7, "loss": 1.5, "lr": 1e-3, "pairs_per_second": 9.0, "tokens": 4})
    metrics.training_line(run, {"step": 8, "loss": math.nan, "skipped": [3]})
    metrics.training_line(trial, {"step": 2, "loss": 0.5})
    metrics.checkpoint_finished(run, 6)
    metrics.responses_generated("compared", "sft", [10, 20])
    metrics.responses_generated("compared", "sft", [5])
    metrics.prompts_judged("compared", 32)
    metrics.sweep_changed("swept", {"finished": 2, "failed": 0}, "eval_reward_accuracy", 0.75)
    wanted = {
        'orpo_ray_training_step{run="scraped",trial=""}': 8, 'orpo_ray_training_eval_loss{run="scraped",trial=""}': 3,
        'orpo_ray_training_lr{run="scraped",trial=""}': 1e-3,
        'orpo_ray_training_pairs_per_second{run="scraped",trial=""}': 9,
        'orpo_ray_training_skipped_steps_total{run="scraped",trial=""}': 1,
        'orpo_ray_training_checkpoint_step{run="scraped",trial=""}': 6,
        'orpo_ray_training_loss{run="swept",trial="003"}': 0.5,
        'orpo_ray_generation_responses_total{model="sft",run="compared"}': 3,
        'orpo_ray_generation_tokens_total{model="sft",run="compared"}': 35,
        'orpo_ray_scoring_prompts_total{run="compared"}': 32,
        'orpo_ray_sweep_trials{run="swept",status="finished"}': 2,
        'orpo_ray_sweep_trials{run="swept",status="failed"}': 0,
        'orpo_ray_sweep_best_value{metric="eval_reward_accuracy",run="swept"}': 0.75,
    }  # fmt: skip
    port = ray.nodes()[0]["MetricsExportPort"]
    found: dict[str, float] = {}
    began = time.monotonic()
    while not wanted.keys() <= found.keys() and time.monotonic() < began + _SECONDS:
        time.sleep(1)
        found = scraped(port)
    assert {name: found.get(name) for name in wanted} == wanted
    assert 'orpo_ray_training_loss{run="scraped",trial=""}' not in found, "a loss that has diverged leaves a gap"
    assert {f"ray_{name.partition('{')[0]}" for name in found} <= metrics.exported()
    time.sleep(max(0.0, began + _FORGOTTEN - time.monotonic()))
    found = scraped(port)
    assert {name: found.get(name) for name in wanted} == wanted, "a step may take longer than Ray keeps a gauge"
