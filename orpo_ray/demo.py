"""`orpo-ray demo`: the whole thing in the embedded world: a base model, SFT and ORPO from it, and who wins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import prepare
from orpo_ray.evaluation.generation import Sampling, generate
from orpo_ray.evaluation.winrate import WinRate, win_rate
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.report import Sample, curves_png, write_comparison, write_report
from orpo_ray.training.launcher import train

_LAMBDA = 1.0


def demo_config(stage: str, out: Path) -> TrainConfig:
    """The settings of a stage: `base`, `sft` or `orpo`. The files `configs/toy-*.yaml` say the same."""
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
    return parse_config(mapping, [], f"demo {stage}")


def run_demo(out: Path) -> None:
    """Train base, SFT and ORPO under `out`, sample from both, and leave `out/report.html`.

    What is finished there already is not done again.
    """
    console = Console()
    started = time.monotonic()
    for stage in ("base", "sft", "orpo"):
        write_report(train(demo_config(stage, out), console).path)
    runs = {"SFT": out / "sft", "ORPO": out / "orpo"}
    prompts, responses = _sample(out, runs, console)
    scores = {
        label: [toyworld.true_score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        for label, texts in responses.items()
    }
    won = win_rate(scores["ORPO"], scores["SFT"])
    samples = [
        Sample(prompt, {label: responses[label][i] for label in runs}, {label: scores[label][i] for label in runs})
        for i, prompt in enumerate(prompts)
    ]
    title = "ORPO over SFT in the embedded world"
    report = write_comparison(out / "report.html", runs, samples, {"ORPO over SFT": won}, title)
    curves_png(out / "curves.png", runs)
    _print(console, scores, won, responses, prompts)
    console.print(f"\n{report} shows it all ({time.monotonic() - started:.0f} s)", soft_wrap=True)


def _sample(out: Path, runs: dict[str, Path], console: Console) -> tuple[list[str], dict[str, list[str]]]:
    """The test requests, and one response of each run to each of them, at temperature 1."""
    config = demo_config("sft", out)
    tokenizer = load_tokenizer(config.model)
    held_out = prepare(config, tokenizer).eval
    ids = [held_out.pair(i)[0].tolist() for i in range(len(held_out))]
    responses = {}
    for label, run in runs.items():
        console.print(f"{label}: sampling {len(ids)} responses with vLLM", soft_wrap=True)
        drawn = generate(run / "model", ids, Sampling(temperature=1.0, max_tokens=48))
        responses[label] = [response.text for response in drawn]
    return [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in ids], responses


def _print(
    console: Console,
    scores: dict[str, list[int]],
    won: WinRate,
    responses: dict[str, list[str]],
    prompts: list[str],
) -> None:
    table = Table("model", "mean true score (0 to 3)", title="Sampled at temperature 1 from 400 unseen requests")
    for name, values in scores.items():
        table.add_row(name, f"{sum(values) / len(values):.2f}")
    console.print(table)
    low, high = won.ci95
    console.print(
        f"ORPO over SFT: wins {won.wins}, ties {won.ties}, losses {won.losses}; "
        f"true win-rate {won.win_rate:.1%}, 95 % interval {low:.1%} to {high:.1%} (ties count half)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for i in range(3):
        console.print(f"\n{prompts[i]}", style="bold", markup=False)
        for name in responses:
            console.print(f"  {name:5} {responses[name][i]}  [{scores[name][i]}]", markup=False, highlight=False)
