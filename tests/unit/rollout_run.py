"""Run folders such as training on rollouts leaves: `ppo` with two sources of reward, eight steps a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STEPS = 8  # of a round: 4 epochs of 64 prompts, 32 a step
ROUNDS = 25
RESPONSES = 256
PROMPTS = ("Which colour has the sky?", "Write a line on rivers.", "What is two and two?")


def configuration(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "name": name, "seed": 0, "model": {"name_or_path": "runs/sft", "dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test"},
        "objective": {"name": "ppo", "kl_coefficient": 0.1, "kl_target": 6.0},
        "rollouts": {
            "rewards": {"judge": "runs/reward", "brief": {"path": "rules.py:brief", "weight": 0.5}}, "prompts": 64,
            "samples": 4, "epochs": None, "max_tokens": 64, "temperature": 1.0,
        },
        "train": {"max_steps": STEPS * ROUNDS, "global_batch_size": 32, "keep": "best", "keep_by": "eval_reward"},
    } | changed  # fmt: skip


def step_line(step: int, rng: np.random.Generator) -> dict[str, Any]:
    done, within = step / (STEPS * ROUNDS), (step - 1) % STEPS
    line: dict[str, Any] = {
        "step": step, "epoch": step / 100, "loss": 0.05 + 0.02 * rng.normal(), "policy_loss": 0.02 * rng.normal(),
        "value_loss": 0.9 * np.exp(-3 * done) + 0.1 * abs(rng.normal()), "clip_fraction": 0.02 * within * (1 + done),
        "value_clip_fraction": 0.01 * within, "ratio": 1 + 0.002 * within * rng.normal(), "approx_kl": 0.001 * within,
        "lr": 1e-5 * (1 - done), "grad_norm": 0.8, "tokens": 4000, "pairs_per_second": 50.0 + rng.normal(),
        "tokens_per_second": 4000.0,
    }  # fmt: skip
    if within == 0:
        reward = 2 * np.sqrt(done) - 0.5 + 0.05 * rng.normal()
        line |= {
            "round": step // STEPS, "reward": reward, "reward/judge": reward + 0.2, "reward/brief": -0.4 - 0.2 * done,
            "reward_sd": 0.7, "kl": 12 * done + 0.2 * abs(rng.normal()), "kl_coefficient": 0.1 * (1 + done),
            "entropy": 1.5 - 0.8 * done, "response_tokens": 30 + 20 * done, "share_cut": 0.02 + 0.1 * done,
            "mismatch_mean": 1e-6 * (1 + done) if step > 1 else 0.0, "mismatch_max": 3e-5 if step > 1 else 0.0,
            "mismatch_k3": 2e-12 if step > 1 else -1e-18, "explained_variance": 0.8 * done - 0.1,
            "not_finite": int(step == 9), "too_long": 2 * (step == 9),
            "rollout_tokens_per_second": 900 + 30 * rng.normal(),
            "score_tokens_per_second": 6000.0, "rollout_seconds": 10.0, "scoring_seconds": 2.0,
        }  # fmt: skip
    return line


def evaluation_line(step: int) -> dict[str, Any]:
    done = step / (STEPS * ROUNDS)
    reward = 2 * np.sqrt(done) - 0.45 - 0.8 * max(0, done - 0.8)
    return {
        "step": step, "eval_reward": reward, "eval_reward/judge": reward + 0.2, "eval_reward/brief": -0.4 - 0.2 * done,
        "eval_kl": 12.5 * done, "eval_entropy": 1.5 - 0.8 * done, "eval_response_tokens": 30 + 20 * done,
        "eval_share_cut": 0.02 + 0.1 * done,
    }  # fmt: skip


def sample_lines(step: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "prompt": prompt, "response": f"Answer {index} of step {step}. " + "It is so. " * (step // 20),
         "reward": step / 100 - index, "ended": "length" if index == 1 else "stop"}
        for index, prompt in enumerate(PROMPTS)
    ]  # fmt: skip


def make_rollout_run(folder: Path, *, steps: int = STEPS * ROUNDS, finished: bool = True, **config: Any) -> Path:
    """One that has come to `steps`, evaluated every 20."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder.name, **config), sort_keys=False))
    rng = np.random.default_rng(0)
    lines, samples = [], []
    for step in range(steps + 1):
        lines += [step_line(step, rng)] if step else []
        if step % 20 == 0:
            lines.append(evaluation_line(step))
            samples += sample_lines(step)
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "samples.jsonl", samples)
    if finished:
        summary = {"name": folder.name, "status": "finished", "steps": steps, "best_step": 160, "seconds": 395.2,
                   "pairs": 6000, "workers": 1}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def draw_responses(folder: Path, round_: int, count: int) -> Path:
    """The file of a round of which so many responses are there."""
    file = folder / "rollouts" / f"{round_:06d}.jsonl"
    file.parent.mkdir(exist_ok=True)
    samples = [
        {"prompt": i // 4, "sample": i % 4, "ids": [5, 2], "logps": [-1.0, -0.5], "ended": "stop"} for i in range(count)
    ]
    write_lines(file, [{"weights": "0123"}, *samples])
    return file
