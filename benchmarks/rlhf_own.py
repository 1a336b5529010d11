"""This package's side of rlhf.py: `orpo-ray train`, with its cluster, engine and scorer, as anybody would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rlhf_work import Round, Work


def ours(work: Work) -> list[Round]:
    """Run the work; the rounds without the first. Raises `RuntimeError` where the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(settings(work, folder)))
        command = [sys.executable, "-m", "orpo_ray.cli", "train", str(config)]
        process = subprocess.Popen(command, stdout=2, env={**os.environ, "DS_ACCELERATOR": "cpu"})
        rounds = _rounds(Path(folder) / "rlhf" / "metrics.jsonl", work, process)
        if process.wait() != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return rounds


def settings(work: Work, folder: str) -> dict[str, Any]:
    """The run's configuration: defaults, but for what the work says."""
    steps = work.rounds * work.updates_of_a_round
    never = {"eval_every_steps": steps, "checkpoint_every_steps": steps, "checkpoint_every_minutes": None}
    return {
        "name": "rlhf",
        "model": {"name_or_path": f"{work.folder}/policy", "dtype": "float32"},
        "data": {
            "train": work.prompts, "eval": work.prompts, "max_length": work.max_length,
            "max_prompt_length": work.max_length - work.tokens,
        },
        "objective": {"name": work.kind, "kl_coefficient": work.kl_coefficient},
        "rollouts": {
            "rewards": {"reward": f"{work.folder}/reward"}, "prompts": work.prompts_of_a_round,
            "samples": work.samples, "epochs": work.epochs, "max_tokens": work.tokens, "eval_prompts": 1,
        },
        "optim": {"lr": work.lr, "schedule": "constant", "warmup_steps": 0},
        "train": {"global_batch_size": work.update_prompts, "max_steps": steps, **never},
        "scaling": {"use_gpu": False},
        "storage": {"path": folder},
    }  # fmt: skip


def _rounds(metrics: Path, work: Work, process: subprocess.Popen[bytes]) -> list[Round]:
    """Of the run that writes these metrics, as their lines come: a round ends with the line of its last step."""
    ends: list[float] = []
    lines: list[dict[str, Any]] = []
    size = 0
    ended = False
    while len(ends) < work.rounds and not ended:
        time.sleep(0.01)
        ended = process.poll() is not None  # asked first: what it has written by then is read
        if not metrics.is_file() or (now := metrics.stat().st_size) == size:
            continue
        size = now
        lines = [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]
        lines = [line for line in lines if "loss" in line]
        while lines and lines[-1]["step"] >= (len(ends) + 1) * work.updates_of_a_round:
            ends.append(time.perf_counter())
    drawn = [line["rollout_seconds"] for line in lines if "rollout_seconds" in line]
    return [Round(ends[i] - ends[i - 1], drawn[i]) for i in range(1, len(ends))]
