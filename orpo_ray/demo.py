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
from orpo_ray.report import Sample, write_comparison, write_report
from orpo_ray.training.launcher import train

_LAMBDA = 1.0


def demo_config(stage: str, out: Path) -> TrainConfig:
    """The settings of a stage: `base`, `sft` or `orpo`. The files `configs/toy-*.yaml` say the same."""
    mapping: dict[str, Any] = {
        "name": stage,
        "model": {"name_or_path": str(out / "base"), "dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
        "objective": {"name": "sft"},
        "optim": {"lr": 1.0e-3, "warmup_steps": 0.1},
        "train": {
            "epochs": 2, "max_steps": 300, "global_batch_size": 32, "tokens_per_microbatch": 4096,
            "eval_every_steps": 25, "checkpoint_every_steps": 100,
        },
        "scaling": {"num_workers": 2},
        "storage": {"path": str(out)},
    }  # fmt: skip
    if stage == "base":
        # Trained on either answer alike, and not for long: a base model that has no preference yet.
        mapping["model"]["name_or_path"] = "toy"
        mapping["data"]["train"] = "toy-base"
        mapping["train"] |= {"max_steps": 120, "checkpoint_every_steps": 60}
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
    runs = {}
    for stage in ("base", "sft", "orpo"):
        folder = train(demo_config(stage, out), console)
        write_report(folder.path)
        runs[stage] = folder.path
    prompts, responses = _sample(out, runs, console)
    scores = {name: [toyworld.true_score(p, r) for p, r in zip(prompts, rs, strict=True)] for name, rs in responses.items()}
    won = win_rate(scores["orpo"], scores["sft"])
    samples = [
        Sample(prompt, {name: responses[name][i] for name in responses}, {name: scores[name][i] for name in scores})
        for i, prompt in enumerate(prompts)
    ]
    report = write_comparison(
        out / "report.html",
        {"SFT": runs["sft"], "ORPO": runs["orpo"]},
        samples,
        {"ORPO against SFT": won},
        title="ORPO against SFT in the embedded world",
    )
    _print(console, scores, won, responses, prompts)
    console.print(f"\n{report} shows it all ({time.monotonic() - started:.0f} s)", soft_wrap=True)


def _sample(
    out: Path, runs: dict[str, Path], console: Console
) -> tuple[list[str], dict[str, list[str]]]:
    """One response of SFT and of ORPO to every test request, at temperature 1."""
    config = demo_config("sft", out)
    tokenizer = load_tokenizer(config.model)
    held_out = prepare(config, tokenizer).eval
    ids = [held_out.pair(i)[0].tolist() for i in range(len(held_out))]
    responses = {}
    for name in ("sft", "orpo"):
        console.print(f"sampling {len(ids)} responses from {name} with vLLM", soft_wrap=True)
        drawn = generate(runs[name] / "model", ids, Sampling(temperature=1.0, max_tokens=48))
        responses[name] = [response.text for response in drawn]
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
        f"ORPO against SFT: wins {won.wins}, ties {won.ties}, losses {won.losses}; "
        f"true win-rate {won.win_rate:.1%}, 95 % interval {low:.1%} to {high:.1%} (ties count half)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for i in range(3):
        console.print(f"\n{prompts[i]}", style="bold", markup=False)
        for name in responses:
            console.print(f"  {name:5} {responses[name][i]}  [{scores[name][i]}]", markup=False, highlight=False)
