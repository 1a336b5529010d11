"""`orpo-ray demo`: the whole thing in the embedded world: a base model, SFT, DPO and ORPO, a judge, and who wins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from orpo_ray.config import EvaluationConfig, TrainConfig, parse_as, parse_config
from orpo_ray.evaluation.evaluate import read_winrates
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.report.demo_pictures import demo_numbers, write_demo
from orpo_ray.stages.graph import Graph
from orpo_ray.stages.run import run_stages
from orpo_ray.terminal import Console

STAGES = ("base", "sft", "dpo", "orpo", "reward")

_LAMBDA = 1.0
_SECONDS = {"base": 15, "sft": 45, "dpo": 35, "orpo": 60, "reward": 50, "winrate": 35}
"""What each stage takes on two cores; what is left is told from their ratios to those that are done."""


def demo_config(stage: str, out: Path) -> TrainConfig:
    """The settings of one of `STAGES`. The files `configs/toy-*.yaml` say the same."""
    mapping: dict[str, Any] = {
        "name": stage,
        "model": {"name_or_path": str(out / "base"), "dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
        "objective": {"name": "sft"},
        "optim": {"lr": 2.0e-3, "warmup_steps": 0.1},
        "train": {
            "epochs": 5, "max_steps": 800, "global_batch_size": 32, "tokens_per_microbatch": 4096,
            "eval_every_steps": 80, "checkpoint_every_steps": 100,
        },
        "scaling": {"num_workers": 2},
        "storage": {"path": str(out)},
    }  # fmt: skip
    if stage == "base":
        # Trained on either answer alike, and not for long: a base model that has no preference yet.
        mapping["model"]["name_or_path"] = "toy"
        mapping["data"]["train"] = "toy-base"
        mapping["train"] |= {"max_steps": 100, "checkpoint_every_steps": 50}
        mapping["optim"]["lr"] = 3.0e-3
    if stage == "orpo":
        mapping["objective"] = {"name": "orpo", "lambda": _LAMBDA}
    if stage == "dpo":
        mapping["model"]["name_or_path"] = str(out / "sft")
        mapping["objective"] = {"name": "dpo", "beta": 0.1}
        mapping["optim"]["lr"] = 1.0e-5
        mapping["train"] |= {"epochs": 3, "max_steps": 400}
    if stage == "reward":
        # From the model that has learnt to state facts: judging them from a pair alone takes far longer.
        mapping["model"]["name_or_path"] = str(out / "sft")
        mapping["objective"] = {"name": "reward", "centre": True}
        mapping["optim"] |= {"lr": 1.0e-3, "weight_decay": 0.1}
        mapping["train"] |= {"epochs": 4, "max_steps": 600}
    return parse_config(mapping, [], f"demo {stage}")


def demo_evaluation(out: Path) -> EvaluationConfig:
    """The comparison that the demo ends with; `configs/toy-winrate.yaml` says the same."""
    mapping: dict[str, Any] = {
        "name": "winrate",
        "models": {stage: str(out / stage) for stage in ("base", "sft", "dpo", "orpo")},
        "prompts": {"source": "toy-test"},
        "reward_models": {"reward": str(out / "reward"), "truth": "toy"},
        "sampling": {"max_tokens": 48},
        "storage": {"path": str(out)},
    }
    return parse_as(EvaluationConfig, mapping, [], "demo winrate")


def demo_settings() -> dict[str, Any]:
    """What the demo runs with, as JSON, wherever it is run."""
    here = Path("runs")
    stages = {**{stage: demo_config(stage, here) for stage in STAGES}, "winrate": demo_evaluation(here)}
    return {label: asked.model_dump(mode="json") for label, asked in stages.items()}


def run_demo(out: Path) -> None:
    """Train every stage under `out`, compare them, and leave `out/winrate/report.html`, two pictures and their numbers.

    What is finished there already is not done again.
    """
    console = Console()
    started = time.monotonic()
    graph = Graph({**{stage: demo_config(stage, out) for stage in STAGES}, "winrate": demo_evaluation(out)})
    report = run_stages(graph, console, usual=_SECONDS)["winrate"]
    found = read_winrates(EvaluationFolder(report.parent))
    write_demo(demo_numbers({"SFT": out / "sft", "ORPO": out / "orpo"}, found, demo_settings()), out)
    _print(console, found)
    console.print()
    console.say(f"{report} shows it all ({time.monotonic() - started:.0f} s)")


def _print(console: Console, found: dict[str, Any]) -> None:
    table = Table(
        "model", "mean true score (0 to 3)", "mean reward",
        title=f"{found['prompts']} unseen requests, {found['rounds']} rounds at temperature 1",
    )  # fmt: skip
    for label in found["models"]:
        table.add_row(label, *(f"{found['rewards'][judge][label]['mean']:.2f}" for judge in ("truth", "reward")))
    console.print(table)
    for pair in found["pairs"]:
        if pair["model"] == "orpo":
            low, high = pair["ci95"]
            judge = "the truth" if pair["reward_model"] == "truth" else "the reward model"
            console.say(
                f"ORPO over {pair['against']:4} by {judge}: win-rate {pair['win_rate']:.1%}, "
                f"95 % interval {low:.1%} to {high:.1%} (ties count half)"
            )
