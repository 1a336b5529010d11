"""PPO in the embedded world, from a demo's SFT and reward model: what the truth gains, and where the reward is fooled.

    orpo-ray demo
    python benchmarks/rlhf_world.py

Trains `configs/toy-ppo.yaml` with three seeds, the same by RLOO, and once with KL at no cost, whose checkpoints are
exported on its way; then `orpo-ray evaluate` compares all with the demo's SFT, DPO and ORPO, on requests that training
never asks, judged by the reward model and by the ground truth. Runs that are done are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t

from orpo_ray.report.figures import GRID
from orpo_ray.storage.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
BASELINES = ("sft", "dpo", "orpo")
"""Of a demo, which all others are compared with."""
FREE_STEPS = (40, 60, 80, 120, 240)
"""Of the run without a cost of KL."""
RUNS: dict[str, list[str]] = {
    **{f"ppo-{seed}": [f"seed={seed}"] for seed in SEEDS},
    # As many responses in a round and in a step, of a quarter of the prompts; each is trained on once.
    "rloo": [
        "objective={name: rloo, kl_coefficient: 0.3}", "rollouts.prompts=64", "rollouts.samples=4",
        "train.global_batch_size=16",
    ],
    "free": [
        "objective.kl_coefficient=0", "optim.lr=1e-4", "optim.schedule=constant", "rollouts.prompts=128",
        "train.global_batch_size=32", "train.max_steps=240", "train.eval_every_steps=20",
        "train.checkpoint_every_steps=20", "train.keep_checkpoints=12",
    ],
}  # fmt: skip
COLOURS = {"ppo": "#0072b2", "rloo": "#009e73", "free": "#d55e00"}  # Okabe and Ito (2008)
NAMES = {"ppo": "PPO, 0.3 a nat of KL, three seeds", "rloo": "RLOO, 0.3 a nat of KL", "free": "PPO, KL at no cost"}


def orpo_ray(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "orpo_ray.cli", *arguments], check=True)


def train(models: Path, out: Path, names: list[str]) -> None:
    for name in names:
        where = [f"name={name}", f"storage.path={out}", f"model.name_or_path={models / 'sft'}"]
        where.append(f"rollouts.rewards.reward={models / 'reward'}")
        orpo_ray("train", str(ROOT / "configs" / "toy-ppo.yaml"), *where, *RUNS[name])
    for step in FREE_STEPS if "free" in names else ():
        if not (out / "free" / f"model-step-{step}").exists():
            orpo_ray("export", str(out / "free"), "--step", str(step))


def evaluated(models: Path, out: Path, names: list[str]) -> dict[str, Any]:
    """What `orpo-ray evaluate` finds of all."""
    of = {name: models / name for name in BASELINES}
    of |= {name: out / name for name in names if name != "free"}
    if "free" in names:
        of |= {f"free-{step}": out / "free" / f"model-step-{step}" for step in FREE_STEPS}
    file = out / "evaluation.yaml"
    mapping = {
        "name": "evaluation", "models": {name: str(path) for name, path in of.items()},
        "prompts": {"source": "toy-test"}, "reward_models": {"reward": str(models / "reward"), "truth": "toy"},
        "sampling": {"max_tokens": 48, "rounds": 3}, "storage": {"path": str(out)},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(mapping, sort_keys=False))
    orpo_ray("evaluate", str(file))
    found: dict[str, Any] = json.loads((out / "evaluation" / "winrates.json").read_text())
    return found


def way(run: Path) -> list[dict[str, float]]:
    """Step, KL, reward and truth of each evaluation of the held-out requests in training."""
    keys = {"step": "step", "kl": "eval_kl", "reward": "eval_reward/reward", "truth": "eval_reward/truth"}
    lines = [line for line in read_metrics(run / "metrics.jsonl").values() if "eval_reward" in line]
    return [{name: round(line[key], 4) for name, key in keys.items()} for line in lines]


def table(winrates: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name in winrates["models"]:
        rows[name] = {f"mean_{judge}": round(of[name]["mean"], 4) for judge, of in winrates["rewards"].items()}
        for pair in winrates["pairs"]:
            if pair["model"] == name and pair["against"] in BASELINES:
                interval = [round(end, 4) for end in pair["ci95"]]
                key = f"over_{pair['against']}_by_{pair['reward_model']}"
                rows[name][key] = [round(pair["win_rate"], 4), *interval]
        for judge, ratings in winrates["ratings"].items():
            [rating] = [each for each in ratings if each["model"] == name]
            rows[name][f"rating_by_{judge}"] = [round(rating["rating"], 1), *(round(end, 1) for end in rating["ci95"])]
    return rows


def results(rows: dict[str, dict[str, Any]], ways: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    keys = [f"over_{other}_by_{judge}" for judge in ("truth", "reward") for other in BASELINES]
    whole = all(f"ppo-{seed}" in rows for seed in SEEDS)
    return {
        "models": rows,
        "ppo_over_seeds": {key: over_seeds(rows, key) for key in keys} if whole else {},
        "on_the_way": ways,
    }


def over_seeds(rows: dict[str, dict[str, Any]], key: str) -> list[float]:
    """Mean over seeds, and its 95 % interval by Student's t."""
    values = [rows[f"ppo-{seed}"][key][0] for seed in SEEDS]
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return [round(value, 4) for value in (mean, mean - half, mean + half)]


def draw(ways: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Reward, and truth, against KL on the way of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained", dpi=150)
    for axes, name, title in zip(
        figure.subplots(1, 2), ("reward", "truth"), ("Reward model, trained on", "Ground truth, 0 to 3"), strict=True
    ):
        for run, points in ways.items():
            kind, _, seed = run.partition("-")
            axes.plot(
                [point["kl"] for point in points], [point[name] for point in points], color=COLOURS[kind],
                marker=".", linewidth=1, label=NAMES[kind] if seed in ("", "1") else None,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("KL to SFT, nats a response")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def written(asked: list[str], storage: Path) -> tuple[Path, Path]:
    """Where results and image of these runs go. What is published is of all of them."""
    if set(asked) >= RUNS.keys():
        name = "rlhf_world"
        return ROOT / "benchmarks" / "results" / f"{name}.json", ROOT / "docs" / "images" / "rlhf-world.png"
    return storage / "rlhf_world.json", storage / "rlhf-world.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/demo"), help="of a demo")
    parser.add_argument("--storage", type=Path, default=Path("runs/rlhf-world"))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--out", type=Path, help="default: the published file, in --storage where --runs are not all")
    parser.add_argument("--image", type=Path, help="default: as --out")
    arguments = parser.parse_args()
    arguments.storage.mkdir(parents=True, exist_ok=True)
    models, storage = arguments.models.resolve(), arguments.storage.resolve()
    train(models, storage, arguments.runs)
    ways = {name: way(storage / name) for name in arguments.runs}
    rows = table(evaluated(models, storage, arguments.runs))
    out, image = written(arguments.runs, storage)
    (arguments.out or out).write_text(json.dumps(results(rows, ways), indent=1) + "\n")
    draw(ways, arguments.image or image)
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
