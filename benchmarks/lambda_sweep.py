"""What a sweep finds in the embedded world, and what it costs: 12 trials over λ and the learning rate, by ASHA.

    python benchmarks/lambda_sweep.py

Trains the demo's base, SFT and ORPO (the shipped default), sweeps the latter, trains `best.yaml` anew, and lets all of
them answer every test request: true win-rates over SFT, and of the winner over the default.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from orpo_ray.config import EvaluationConfig, SweepConfig, load_config, load_sweep, parse_as, parse_config
from orpo_ray.demo import demo_config
from orpo_ray.evaluation.evaluate import evaluate, read_winrates
from orpo_ray.report import write_sweep_report
from orpo_ray.terminal import Console
from orpo_ray.training.launcher import train
from orpo_ray.tuning.sweep import sweep

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "toy-sweep.yaml"


def last_evaluation(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = [line for line in lines if "eval_loss" in line][-1]
    return found


def sweep_config(work: Path, steps: int) -> SweepConfig:
    """`configs/toy-sweep.yaml` over the default ORPO run of this benchmark."""
    held = load_sweep(CONFIG).model_dump(mode="json")
    run = demo_config("orpo", work).model_dump(mode="json", by_alias=True)
    run["train"]["max_steps"] = steps
    held |= {"train": run, "storage": {"path": str(work)}}
    held["finalists"]["against"] = str(work / "sft")
    return parse_as(SweepConfig, held, [], "sweep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="of SFT, of the default and of each trial")
    parser.add_argument("--work", type=Path, default=Path("runs/lambda-sweep"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lambda_sweep.json"))
    arguments = parser.parse_args()
    console, work = Console(), arguments.work
    for stage in ("base", "sft", "orpo"):
        mapping = demo_config(stage, work).model_dump(mode="json", by_alias=True)
        train(parse_config(mapping, [f"train.max_steps={arguments.steps}"] if stage != "base" else [], stage), console)

    started = time.monotonic()
    folder = sweep(sweep_config(work, arguments.steps), console)
    seconds = time.monotonic() - started
    console.print(write_sweep_report(folder.path))
    best = train(load_config(folder.best), console)

    found = folder.held
    winner = found["trials"][found["winner"]]
    comparison = {
        "name": "comparison",
        "models": {"winner": str(best.path), "default": str(work / "orpo"), "sft": str(work / "sft")},
        "prompts": {"source": "toy-test"}, "reward_models": {"truth": "toy"}, "sampling": {"max_tokens": 48},
        "embedder": None, "storage": {"path": str(work)},
    }  # fmt: skip
    pairs = read_winrates(evaluate(parse_as(EvaluationConfig, comparison, [], "comparison"), console))["pairs"]
    rates = {
        f"{pair['model']} over {pair['against']}": {key: pair[key] for key in ("win_rate", "ci95", "p_holm")}
        for pair in pairs
        if (pair["model"], pair["against"]) in {("winner", "default"), ("winner", "sft"), ("default", "sft")}
    }
    metric = found["metric"]
    again, default = (last_evaluation(path)[metric] for path in (best.path, work / "orpo"))
    result = {
        "cpus": os.cpu_count(), "steps": arguments.steps, "trials": len(found["trials"]), "winner": winner,
        "steps_run": found["steps_run"], "steps_of_all": found["steps_of_all"],
        "share_of_steps": found["steps_run"] / found["steps_of_all"], "seconds": seconds,
        metric: {"in the sweep": winner["value"], "best.yaml run anew": again, "default": default},
        "true_win_rates": rates, "finalists": found["finalists"],
        "all": found["trials"],
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print_json(json.dumps({key: result[key] for key in ("winner", "share_of_steps", metric, "true_win_rates")}))


if __name__ == "__main__":
    main()
