"""What an evaluation's parts cost beside the plain way, in one run: generation, scoring, and both at once.

    python benchmarks/evaluation.py --data ../shared/data/hh_rlhf/harmless-base-test.jsonl.gz \
        --tokenizer ../shared/tokenizers/opt

- generation: tokens a second through our actor, fed as the pipeline feeds it, against one `LLM.generate` over the
  same requests in an actor of its own; one CPU each, alternating.
- scoring: six responses to each real prompt by the packed scorer, against Hugging Face over padded batches of several
  sizes, in order and sorted by length (the best of them counts); alternating, in this process.
- pipeline: generation alone, scoring alone, and both at once on a CPU each.

Weights are random: speed does not depend on them. Medians of `--repeats`; ratios are of the same repeat.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import EvaluationConfig, ModelConfig, parse_as
from orpo_ray.config.evaluation import PromptsConfig, SamplingConfig
from orpo_ray.data.prompts import read_prompts, readable
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.evaluation.generation import ENVIRONMENT, EngineOptions, Generator, Request
from orpo_ray.evaluation.pipeline import AT_WORK, Pipeline
from orpo_ray.evaluation.plan import make_plan
from orpo_ray.evaluation.scoring import Rows
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import packed_scores
from orpo_ray.training.cluster import connect

MODELS = Path(__file__).resolve().parents[1] / "configs/models"
MAX_TOKENS = 48
BUDGET = 16384
PARTS = ("scoring", "generation", "pipeline")


class Bare:
    """`LLM.generate` over everything at once, with the options of our engine."""

    def __init__(self, model: str, max_length: int) -> None:
        from vllm import LLM

        self.engine: Any = LLM(
            model=model, dtype="float32", max_model_len=max_length, enforce_eager=True, generation_config="vllm",
            enable_chunked_prefill=False, max_num_batched_tokens=4096,
        )  # fmt: skip

    def run(self, requests: list[Request]) -> int:
        from vllm import SamplingParams

        params = [SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=request.seed) for request in requests]
        outputs = self.engine.generate(
            [{"prompt_token_ids": request.ids} for request in requests], params, use_tqdm=False
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)


def generation(policy: Path, requests: list[Request], repeats: int) -> dict[str, Any]:
    import ray

    longest = max(len(request.ids) for request in requests) + MAX_TOKENS
    on_one_cpu = {"num_cpus": 1, "runtime_env": {"env_vars": ENVIRONMENT}}
    bare = ray.remote(Bare).options(**on_one_cpu).remote(str(policy), longest)
    ours = ray.remote(Generator).options(**on_one_cpu).remote(
        EngineOptions(str(policy), "float32", longest), SamplingConfig(max_tokens=MAX_TOKENS)
    )  # fmt: skip

    def fed() -> int:
        todo, at_work, tokens = deque(requests), 0, 0
        while todo or at_work:
            new = [todo.popleft() for _ in range(min(AT_WORK - at_work, len(todo)))]
            responses = ray.get(ours.advance.remote(new))
            at_work += len(new) - len(responses)
            tokens += sum(response.tokens for response in responses)
        return tokens

    ways = {"bare": lambda: ray.get(bare.run.remote(requests)), "ours": fed}
    rounds = _alternated(ways, repeats)
    for actor in (bare, ours):
        ray.kill(actor)
    return _against(rounds, "bare")


def scoring(judge: Path, rows: list[Rows], repeats: int) -> dict[str, Any]:
    packed = load_reward_model(ModelConfig(name_or_path=str(judge), dtype="float32"), seed=0).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    texts = [prompt + ending for prompt, *endings in rows for ending in endings]

    def padded(size: int, sort: bool) -> Callable[[], int]:
        ordered = sorted(texts, key=len) if sort else texts

        def run() -> int:
            for start in range(0, len(ordered), size):
                batch = ordered[start : start + size]
                longest = max(map(len, batch))
                ids = torch.tensor([text + [1] * (longest - len(text)) for text in batch])
                with torch.inference_mode():
                    plain(input_ids=ids, attention_mask=(ids != 1).long())
            return len(texts)

        return run

    def ours() -> int:
        return sum(map(len, packed_scores(packed, rows, BUDGET)))

    ways: dict[str, Callable[[], int]] = {"ours": ours}
    ways |= {f"padded {size}{' sorted' * sort}": padded(size, sort) for size in (6, 24) for sort in (False, True)}
    rounds = _alternated(ways, repeats)
    best = min(set(ways) - {"ours"}, key=lambda way: statistics.median(r[way]["seconds"] for r in rounds))
    return {"best_padded": best, **_against(rounds, best)}


def pipeline(work: Path, policy: Path, judge: Path, prompts: Path, repeats: int) -> dict[str, Any]:
    alone = Resources(1, 1, 1, 0, 0, None)
    rounds = []
    for _ in range(repeats):
        seconds = {}
        for stage in ("generation", "scoring", "both"):
            name = "pieces" if stage != "both" else "both"
            if stage != "scoring":
                shutil.rmtree(work / name, ignore_errors=True)
            config = parse_as(
                EvaluationConfig,
                {
                    "name": name, "models": {"policy": str(policy)}, "prompts": {"source": str(prompts)},
                    "reward_models": {"judge": str(judge)}, "sampling": {"max_tokens": MAX_TOKENS, "rounds": 3},
                    "storage": {"path": str(work)},
                }, [], "benchmark",
            )  # fmt: skip
            plan = make_plan(config)
            plan = replace(plan, judges={}) if stage == "generation" else plan
            start = time.perf_counter()
            Pipeline(plan, alone, lambda **_: None).run()
            seconds[stage] = time.perf_counter() - start
        rounds.append(seconds)
    ratios = [r["both"] / max(r["generation"], r["scoring"]) for r in rounds]
    medians = {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
    return {"seconds": medians, "both_to_slower": _spread(ratios), "rounds": rounds}


def _alternated(ways: dict[str, Callable[[], int]], repeats: int) -> list[dict[str, dict[str, float]]]:
    """Seconds and count of each way, in turn; a first round warms up."""
    rounds = []
    for _ in range(repeats + 1):
        measured = {}
        for name, run in ways.items():
            start = time.perf_counter()
            count = run()
            measured[name] = {"seconds": time.perf_counter() - start, "count": count}
        rounds.append(measured)
    return rounds[1:]


def _against(rounds: list[dict[str, dict[str, float]]], baseline: str) -> dict[str, Any]:
    rates = {name: statistics.median(r[name]["count"] / r[name]["seconds"] for r in rounds) for name in rounds[0]}
    ratios = [
        r["ours"]["count"] / r["ours"]["seconds"] / (r[baseline]["count"] / r[baseline]["seconds"]) for r in rounds
    ]
    return {"per_second": rates, "ours_to_baseline": _spread(ratios), "rounds": rounds}


def _spread(ratios: list[float]) -> list[float]:
    return [min(ratios), statistics.median(ratios), max(ratios)]


def _models(work: Path, tokenizer: str, judge_shape: str) -> tuple[Path, Path]:
    """A policy of 4 x 128 and a reward model, random, with the genuine vocabulary."""
    torch.manual_seed(0)
    policy, judge = work / "policy", work / "judge"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODELS / "opt-8m")).save_pretrained(policy)
    config = AutoConfig.from_pretrained(MODELS / judge_shape)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(judge)
    for folder in (policy, judge):
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return policy, judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay as they are in --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=160, help="of the pipeline and of generation")
    parser.add_argument("--scored", type=int, default=24, help="prompts of the scoring row")
    parser.add_argument("--judge", default="opt-52m", help="shape of the reward model in configs/models")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/evaluation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation.json"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    policy, judge = _models(work, arguments.tokenizer, arguments.judge)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    source = PromptsConfig(source=arguments.data, on_bad_record="quarantine")
    pairs = [pair.as_found for pair in read_prompts(source, with_messages=False)[0]]
    ids = [tokenizer(readable(pair.prompt))["input_ids"] for pair in pairs]
    short = [i for i in range(len(pairs)) if len(ids[i]) <= 256]

    asked = work / "prompts.jsonl"
    chosen = short[: arguments.prompts]
    asked.write_text("".join(json.dumps({"prompt": readable(pairs[i].prompt)}) + "\n" for i in chosen))
    requests = [Request(i, round, ids[i], 1000 * i + round) for i in chosen for round in range(3)]
    said = [tokenizer(readable(turns), add_special_tokens=False)["input_ids"] + [2]
            for pair in islice(pairs, 6 * arguments.scored) for turns in pair.completions]  # fmt: skip
    said = [text for text in said if len(text) > 1]
    spaced = range(0, len(pairs), len(pairs) // arguments.scored)
    rows = [[ids[i], *(said[6 * k : 6 * k + 6])] for k, i in enumerate(spaced[: arguments.scored])]

    connect(cpus=2)
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    machine = {"processor": platform.machine(), "cpus": psutil.cpu_count(), "python": platform.python_version()}
    result |= {"commit": commit, "machine": machine, "judge": arguments.judge}
    if "scoring" in arguments.parts:
        result["scoring"] = {
            "prompt_tokens": statistics.mean(len(prompt) for prompt, *_ in rows),
            "response_tokens": statistics.mean(len(ending) for _, *endings in rows for ending in endings),
            **scoring(judge, rows, arguments.repeats),
        }
        print(_line("scoring (texts)", result["scoring"]), flush=True)
    if "generation" in arguments.parts:
        result["generation"] = generation(policy, requests, arguments.repeats)
        print(_line("generation (tokens)", result["generation"]), flush=True)
    if "pipeline" in arguments.parts:
        result["pipeline"] = {"prompts": len(chosen), **pipeline(work, policy, judge, asked, arguments.repeats)}
        seconds = {stage: round(value, 1) for stage, value in result["pipeline"]["seconds"].items()}
        low, middle, high = result["pipeline"]["both_to_slower"]
        print(f"pipeline: seconds {seconds}; both to the slower {middle:.2f} ({low:.2f} to {high:.2f})")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _line(name: str, row: dict[str, Any]) -> str:
    rates = ", ".join(f"{way} {rate:.1f}/s" for way, rate in row["per_second"].items())
    low, middle, high = row["ours_to_baseline"]
    return f"{name}: {rates}; ours to the baseline {middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
