"""The paper's λ ablation (Figure 9) in the embedded world, over seeds: margins, and the true win-rate over SFT.

    python benchmarks/lambda_ablation.py --seeds 0 1 2 --lambdas 0.1 0.5 1.0 2.0

For each seed a base model, SFT from it, and ORPO from it at each λ: the demo's settings in a plain process. Each
model answers every test request `--rounds` times at temperature 1; the true scorer judges.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import prepare
from orpo_ray.demo import demo_config
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.statistics.winrate import win_rate
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import Line, Sink, State, run
from orpo_ray.training.source import PairSource


class Lines(Sink):
    """A sink that keeps the evaluations."""

    def __init__(self) -> None:
        self.evaluations: list[Line] = []

    def metrics(self, line: Line) -> None:
        if "eval_loss" in line:
            self.evaluations.append(line)


def trained(config: TrainConfig, folder: Path) -> Line:
    """Train in this process, save the last model into `folder`, and return its evaluation."""
    data = prepare(config, load_tokenizer(config.model))
    engine = TorchEngine(load_policy(config.model, seed=config.seed), config.optim)
    sink = Lines()
    run(engine, config, PairSource(engine, config, data.train, data.eval), sink, State())
    engine.policy.model.save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    return sink.evaluations[-1]


def true_scores(folder: Path, rounds: int) -> NDArray[np.float64]:
    """`(requests, rounds)` of `rounds` answers to each test request."""
    tokenizer = toyworld.tokenizer()
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [record["prompt"] for record in toyworld.records("toy-test")]
    torch.manual_seed(0)
    scores: list[int] = []
    for start in range(0, len(prompts), 100):
        batch = prompts[start : start + 100]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        drawn = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48, num_return_sequences=rounds
        )
        texts = tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores += [toyworld.true_score(batch[i // rounds], text) for i, text in enumerate(texts)]
    return np.array(scores, dtype=np.float64).reshape(len(prompts), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.1, 0.5, 1.0, 2.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of SFT and ORPO; default: the demo's")
    parser.add_argument("--work", type=Path, default=Path("runs/lambda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lambda_ablation.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        work = arguments.work / f"seed-{seed}"

        def config(stage: str, *overrides: str, work: Path = work, seed: int = seed) -> TrainConfig:
            mapping = demo_config(stage, work).model_dump(mode="json", by_alias=True)
            steps = [f"train.max_steps={arguments.steps}"] if arguments.steps and stage != "base" else []
            return parse_config(mapping, [f"seed={seed}", *steps, *overrides], "ablation")

        trained(config("base"), work / "base")
        runs = {"sft": config("sft")} | {
            f"orpo {weight}": config("orpo", f"objective.lambda={weight}") for weight in arguments.lambdas
        }
        scores: dict[str, NDArray[np.float64]] = {}
        for name, settings in runs.items():
            start = time.monotonic()
            evaluation = trained(settings, work / name)
            scores[name] = true_scores(work / name, arguments.rounds)
            won = win_rate(scores[name], scores["sft"])
            rows.append(
                {
                    "seed": seed, "run": name, "win_rate": won.win_rate, "ci95": won.ci95,
                    "true_score": scores[name].mean(), **evaluation,
                }
            )  # fmt: skip
            print(
                f"seed {seed} {name:9} chosen {evaluation['eval_logps_chosen']:.3f} rejected "
                f"{evaluation['eval_logps_rejected']:.3f} log odds ratio {evaluation['eval_log_odds_ratio']:.3f} "
                f"true score {rows[-1]['true_score']:.2f} win-rate over SFT {won.win_rate:.1%} "
                f"({won.ci95[0]:.1%} to {won.ci95[1]:.1%}), {time.monotonic() - start:.0f} s",
                flush=True,
            )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
