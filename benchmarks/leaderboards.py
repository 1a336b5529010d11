"""A whole MT-Bench and a whole AlpacaEval with small local models: what they take on this machine, end to end.

    python benchmarks/leaderboards.py

Models are of 8 million parameters with OPT's vocabulary and random weights: they end no answer, and as judges they say
nothing that is a rating, so these are times and no scores. MT-Bench: 80 questions of two turns, 512 tokens an answer,
since two turns of 1,024 do not fit their context, rated by a local judge in at most 128 tokens. AlpacaEval 2: 805
instructions, 256 tokens an answer; that model and gemma-2b-it's published outputs beside the reference's, by the labels
of a local judge.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from orpo_ray.bench.results import machine
from orpo_ray.bench.stages.models import random_policy

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mt-bench", "alpaca-eval-2"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/leaderboards.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"benchmarks": {}}
    results["machine"] = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_policy(str(ROOT / "configs/models/opt-8m"), str(SHARED / "tokenizers/opt"), folder)
        for benchmark, settings in (("mt-bench", mt_bench(model)), ("alpaca-eval-2", alpaca_eval(model, folder))):
            if arguments.only in (None, benchmark):
                results["benchmarks"][benchmark] = measured(benchmark, settings, folder)
                print(benchmark, json.dumps(results["benchmarks"][benchmark]), flush=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def mt_bench(model: Path) -> dict[str, Any]:
    answers = SHARED / "data/eval_prompts"
    return {
        "models": {"small": {"path": str(model), "chat_template": "orpo"}},
        "prompts": {"source": str(answers / "mt_bench_questions.jsonl")},
        "judges": {"judge": {"kind": "vllm", "model": str(model), "chat_template": "orpo", "max_tokens": 128}},
        "judging": {"references": str(answers / "mt_bench_reference_gpt-4.jsonl")},
        "sampling": {"max_tokens": 512},
    }


def alpaca_eval(model: Path, folder: Path) -> dict[str, Any]:
    with gzip.open(SHARED / "data/alpaca_eval/gemma-2b-it.annotations.json.gz", "rt") as file:
        rows = json.load(file)
    files = {}
    for name, key in (("gpt4_1106_preview", "output_1"), ("gemma-2b-it", "output_2")):
        path = folder / f"{name}.json"
        outputs = [{"instruction": row["instruction"], "output": row[key], "generator": name} for row in rows]
        path.write_text(json.dumps(outputs))
        files[name] = str(path)
    return {
        "models": {**files, "small": {"path": str(model), "chat_template": "orpo"}},
        "prompts": {"source": files["gpt4_1106_preview"]},
        "judges": {"judge": {"kind": "vllm", "model": str(model), "chat_template": "orpo"}},
        "leaderboard": {"difficulty": str(SHARED / "data/alpaca_eval/instruction_difficulty.json")},
        "sampling": {"max_tokens": 256},
    }


def measured(benchmark: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The command's whole time, from start to page, and what it made."""
    name = benchmark.replace("-", "_")
    config = folder / f"{name}.yaml"
    own = {"name": name, "benchmark": benchmark, "embedder": None, "storage": {"path": str(folder / "runs")}}
    config.write_text(yaml.safe_dump({**own, **settings}))
    started = time.perf_counter()
    command = [sys.executable, "-m", "orpo_ray.cli", "evaluate", str(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
    seconds = time.perf_counter() - started
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    found = json.loads((folder / "runs" / name / "winrates.json").read_text())
    counts = found["judges"]["judge"]["counts"]
    return {
        "seconds": round(seconds, 1),
        "prompts": found["prompts"],
        "responses": {label: model["responses"] for label, model in found["models"].items()},
        "mean_tokens": {label: model["mean_tokens"] for label, model in found["models"].items()},
        "verdicts": counts,
        "notes": [note for note in found["notes"] if re.search("judge|context", note)],
    }


if __name__ == "__main__":
    main()
