"""A whole MT-Bench and a whole AlpacaEval on this machine, end to end, with a judge whose verdicts can be checked.

    python benchmarks/leaderboards.py

What is good is a rule (`leaderboard_rule.py`). `orpo-ray train` teaches it to a judge of 7 million parameters, in the
project's own wording of a judge's prompt, and makes two policies of the same pairs, by SFT and by ORPO. `orpo-ray
evaluate` then asks them all of a benchmark: MT-Bench's 80 questions of two turns, each answer rated in words, and
AlpacaEval 2's 805 instructions, where the two and gemma-2b-it's published outputs stand beside the reference's, judged
by label. The judge is held against the rule, and the scores against what the rule gives for the same answers. These
models are far too small to answer anything: what is shown is that the numbers come out right, and what they take.

`--questions 4` asks so many alone; `--folder DIR` keeps the models there, and takes those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import leaderboard_rule as rule
import numpy as np
import torch
import yaml
from statsmodels.stats.inter_rater import cohens_kappa

from orpo_ray.bench.results import machine
from orpo_ray.leaderboards.files import annotation, read_answers, read_judgments, records
from orpo_ray.statistics.agreement import agreement_of_outcomes

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 50272, "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "hidden_act": "silu", "max_position_embeddings": 4096, "bos_token_id": 2, "pad_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
REFERENCE = "gpt4_1106_preview"
POLICIES = ("sft", "orpo")
JUDGEMENTS = 5000
"""A judge is trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mt-bench", "alpaca-eval-2"))
    parser.add_argument("--questions", type=int, help="ask so many of a benchmark alone")
    parser.add_argument("--judgements", type=int, default=JUDGEMENTS, help="train the judge on so many")
    parser.add_argument("--folder", type=Path, help="keep models and evaluations there")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/leaderboards.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"benchmarks": {}}
    results["machine"] = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() if arguments.folder is None else contextlib.nullcontext(arguments.folder) as to:
        folder = Path(to).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results["training_seconds"] = trained(folder, arguments.judgements)
        for benchmark, settings in (("mt-bench", mt_bench(folder)), ("alpaca-eval-2", alpaca_eval(folder))):
            if arguments.only in (None, benchmark):
                if arguments.questions is not None:
                    settings["prompts"]["limit"] = arguments.questions
                results["benchmarks"][benchmark] = measured(benchmark, settings, folder)
                print(benchmark, json.dumps(results["benchmarks"][benchmark]), flush=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def trained(folder: Path, judgements: int) -> dict[str, float]:
    """The judge and both policies in `folder`, and the seconds that each took."""
    records = rule.read(SHARED / "data/ultrafeedback/train-1000.jsonl")
    held_out = rule.read(SHARED / "data/ultrafeedback/test-200.jsonl")
    shape = folder / "shape"
    shape.mkdir(exist_ok=True)
    (shape / "config.json").write_text(json.dumps(SHAPE))
    judging = rule.write(folder / "judging.jsonl", rule.judgements(records, judgements, seed=0))
    judging_test = rule.write(folder / "judging-test.jsonl", rule.judgements(held_out, 100, seed=1))
    pairs = rule.write(folder / "pairs.jsonl", rule.pairs(records, seed=0))
    pairs_test = rule.write(folder / "pairs-test.jsonl", rule.pairs(held_out, seed=1))
    sft = {"name": "sft", "nll_tokens": "chosen"}
    orpo = {"name": "orpo", "nll_tokens": "chosen", "lambda": 1.0}
    # Nearly every token of a policy's pairs is predicted, and each takes a row of logits.
    policy = {"global_batch_size": 16, "max_steps": 120, "tokens_per_microbatch": 2048}
    runs = {
        "judge": (sft, judging, judging_test, {"lr": 1e-3}, {"global_batch_size": 16, "epochs": 1}),
        "sft": (sft, pairs, pairs_test, {"lr": 3e-3}, policy),
        "orpo": (orpo, pairs, pairs_test, {"lr": 3e-3}, policy),
    }
    seconds = {}
    for name, (objective, train, test, optim, loop) in runs.items():
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({
            "name": name,
            "model": {"name_or_path": str(shape), "init": "random", "tokenizer": str(SHARED / "tokenizers/opt"),
                      "dtype": "float32"},
            "data": {"train": str(train), "eval": str(test), "chat_template": "orpo", "max_length": 2048,
                     "max_prompt_length": 2000},
            "objective": objective, "optim": {"warmup_steps": 0.1, **optim},
            "train": {"zero_stage": 0, "keep": "last", **loop},
            "scaling": {"num_workers": 2}, "storage": {"path": str(folder)},
        }))  # fmt: skip
        seconds[name] = command("train", str(config))
    return seconds


def mt_bench(folder: Path) -> dict[str, Any]:
    answers = SHARED / "data/eval_prompts"
    categories = ("writing", "roleplay", "stem", "humanities")
    return {
        "models": {name: str(folder / name) for name in POLICIES},
        "prompts": {"source": str(answers / "mt_bench_questions.jsonl")},
        "judges": {"judge": {"kind": "vllm", "model": str(folder / "judge"), "max_tokens": 32}},
        "judging": {"references": str(answers / "mt_bench_reference_gpt-4.jsonl")},
        # At 0 a model that follows no question gives the same answer to all.
        "sampling": {
            "temperature": 1.0, "by_category": {name: {"temperature": 1.0} for name in categories}, "max_tokens": 512,
        },
    }  # fmt: skip


def alpaca_eval(folder: Path) -> dict[str, Any]:
    with gzip.open(SHARED / "data/alpaca_eval/gemma-2b-it.annotations.json.gz", "rt") as file:
        rows = json.load(file)
    files = {}
    for name, key in ((REFERENCE, "output_1"), ("gemma-2b-it", "output_2")):
        path = folder / f"{name}.json"
        outputs = [{"instruction": row["instruction"], "output": row[key], "generator": name} for row in rows]
        path.write_text(json.dumps(outputs))
        files[name] = str(path)
    return {
        "models": {**files, **{name: str(folder / name) for name in POLICIES}},
        "prompts": {"source": files[REFERENCE]},
        "judges": {"judge": {"kind": "vllm", "model": str(folder / "judge")}},
        "leaderboard": {"difficulty": str(SHARED / "data/alpaca_eval/instruction_difficulty.json")},
        "sampling": {"max_tokens": 512},
    }


def command(*arguments: str) -> float:
    """Seconds that it took, from its start to its end."""
    started = time.perf_counter()
    whole = [sys.executable, "-m", "orpo_ray.cli", *arguments]
    done = subprocess.run(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(whole)} ended with {done.returncode}")
    return round(time.perf_counter() - started, 1)


def measured(benchmark: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The command's whole time, from start to page, and what it made, beside what the rule makes of these answers."""
    name = benchmark.replace("-", "_")
    config = folder / f"{name}.yaml"
    own = {"name": name, "benchmark": benchmark, "embedder": None, "storage": {"path": str(folder)}}
    config.write_text(yaml.safe_dump({**own, **settings}))
    seconds = command("evaluate", str(config))
    run = folder / name
    found = json.loads((run / "winrates.json").read_text())
    own_numbers = found["leaderboards"][benchmark]["rows"]
    return {
        "seconds": seconds,
        "prompts": found["prompts"],
        "responses": {label: model["responses"] for label, model in found["models"].items()},
        "mean_tokens": {label: model["mean_tokens"] for label, model in found["models"].items()},
        "verdicts": found["judges"]["judge"]["counts"],
        **(of_ratings(run, own_numbers) if benchmark == "mt-bench" else of_pairs(run, own_numbers)),
        "notes": [note for note in found["notes"] if re.search("judge|context", note)],
    }


def of_ratings(run: Path, own_numbers: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of MT-Bench, and the judge's ratings beside the rule's, rounded: kappa with quadratic weights."""
    command("outputs", str(run), "--benchmark", "mt-bench")
    answers = {
        (answer.model, answer.question_id): answer.choices[0]
        for name in POLICIES
        for answer in read_answers(run / f"outputs/mt-bench/{name}.jsonl")
    }
    scores: dict[str, Any] = {
        row["model"]: {key: row[key] for key in ("score", "turns", "unreadable", "missing")} for row in own_numbers
    }
    by_turn: dict[int, list[tuple[float, float]]] = {}
    true: dict[str, list[float]] = {name: [] for name in POLICIES}
    for judgment in read_judgments(run / "leaderboards/mt-bench/judge_single.jsonl"):
        good = rule.rating(answers[judgment.model, judgment.question_id][judgment.turn - 1])
        true[judgment.model].append(good)
        if judgment.score is not None and judgment.score >= 1:
            by_turn.setdefault(judgment.turn, []).append((judgment.score, good))
    for name, ratings in true.items():
        scores[name]["by_the_rule"] = round(float(np.mean(ratings)), 2)
    return {"scores": scores, "judge_and_rule": {f"turn_{turn}": _agreed(both) for turn, both in by_turn.items()}}


def _agreed(both: list[tuple[float, float]]) -> dict[str, Any]:
    table = np.zeros((10, 10))
    for said, good in both:
        table[round(said) - 1, round(good) - 1] += 1
    apart = np.abs(np.subtract(*np.transpose(both)))
    kappa = float(cohens_kappa(table, wt="quadratic").kappa)
    return {"n": len(both), "kappa": round(kappa, 3), "mean_distance": round(float(apart.mean()), 2)}


def of_pairs(run: Path, own_numbers: list[dict[str, Any]]) -> dict[str, Any]:
    """Win-rates of AlpacaEval, and who wins by judge and rule, where that tells two answers apart."""
    kept = ("win_rate", "standard_error", "ci95", "length_controlled_here", "unreadable")
    scores: dict[str, Any] = {row["model"]: {key: row.get(key) for key in kept} for row in own_numbers}
    by_judge, by_rule = {}, {}
    for name, score in scores.items():
        file = run / f"leaderboards/alpaca-eval-2/judge/{name}.json"
        rows = [annotation(location, row) for location, row in records(file)]
        said = np.array([np.nan if row.preference is None else row.preference - 1 for row in rows])
        better = np.array([_better(row.output_2, row.output_1) for row in rows])
        score["by_the_rule"] = round(100 * float(better.mean()), 2)
        told = (better != 0.5) & ~np.isnan(said)
        if told.any():
            by_judge[name, REFERENCE], by_rule[name, REFERENCE] = said[told], better[told]
    found = agreement_of_outcomes(by_judge, by_rule)
    return {"scores": scores, "judge_and_rule": found and {
        "n": found.comparisons, "agree": round(found.agree, 3), "kappa": round(found.kappa, 3),
    }}  # fmt: skip


def _better(answer: str, other: str) -> float:
    """1 where the rule finds for the first, 0 for the second, half where it cannot tell."""
    return float(np.sign(rule.goodness(answer) - rule.goodness(other)) / 2 + 0.5)


if __name__ == "__main__":
    main()
