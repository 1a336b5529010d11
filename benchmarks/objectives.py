"""What each objective costs: seconds of a step and peak memory, on the same real pairs, in a plain process.

    python benchmarks/objectives.py --data ../shared/data/hh_rlhf/harmless-base-test.jsonl.gz \
        --tokenizer ../shared/tokenizers/opt

The objectives run in turn, round after round, each in a process of its own; the table holds medians over rounds and
the ratio to ORPO of the same round. `orpo-chosen-nll` leaves prompt tokens out of its NLL, as DPO does by its nature:
the head then computes the responses alone. `dpo-on-the-fly` computes its reference's log-probs in every step, as
trainers without a cache do. Memory is the peak resident set above that of the process with model and optimizer in
place; a second model, where there is one, counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

OBJECTIVES = ("sft", "orpo", "orpo-chosen-nll", "probability_ratio", "dpo", "dpo-on-the-fly", "reward")
STEPS, WARM_UP = 4, 1
_OBJECTIVE_OF = {"orpo-chosen-nll": {"name": "orpo", "nll_tokens": "chosen"}, "dpo-on-the-fly": {"name": "dpo"}}


def measure(name: str, model: str, data: str, tokenizer: str, cache: str) -> dict[str, float]:
    """Median seconds of a step of 8 pairs, and peak memory in bytes, of one objective in this process."""
    import torch

    from orpo_ray.config import parse_config
    from orpo_ray.data.dataset import PairDataset
    from orpo_ray.data.prepare import prepare
    from orpo_ray.modeling.loading import load_policy, load_tokenizer
    from orpo_ray.modeling.scorer import load_scorer
    from orpo_ray.objectives.registry import build_objective
    from orpo_ray.training.engine import TorchEngine
    from orpo_ray.training.loop import Meter, train_step
    from orpo_ray.training.reference import reference_logps
    from orpo_ray.training.source import PairSource

    config = parse_config(
        {
            "name": "objectives",
            "model": {
                "name_or_path": model, "init": "random", "dtype": "float32", "tokenizer": tokenizer,
            },
            "data": {"train": data, "on_bad_record": "quarantine", "max_length": 512, "max_prompt_length": 384},
            "objective": _OBJECTIVE_OF.get(name, {"name": name}),
            "train": {"global_batch_size": 8},
            "storage": {"path": cache},
        },
        [],
        "benchmark",
    )  # fmt: skip
    pairs = prepare(config, load_tokenizer(config.model)).train
    assert isinstance(pairs, PairDataset)  # one source
    objective = build_objective(config.objective)
    engine = TorchEngine(load_scorer(objective.model, config.model, seed=0), config.optim)
    # The optimizer's state is made by the first step: it is part of what is in place.
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            engine.optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    in_place = psutil.Process().memory_info().rss
    known = np.zeros((len(pairs), 2), np.float32)  # a cached reference costs the same whatever its numbers
    pairs = replace(pairs, reference=known)
    reference = load_policy(config.model, seed=0).eval() if name == "dpo-on-the-fly" else None
    source, seconds = PairSource(engine, config, pairs, pairs), []
    feed, schedule = source.micro_batches(0), source.schedule
    meter = Meter.of(engine, config)
    for step in range(STEPS):
        start = time.perf_counter()
        if reference is not None:
            known[schedule.indices(step)] = reference_logps(pairs, schedule.indices(step), reference, 8192)
        train_step(engine, config, source, feed, step, meter, signals={})
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[WARM_UP:]), "peak_bytes": peak - in_place}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "configs/models/opt-8m"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES, help="orpo among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", default="runs/benchmarks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/objectives.json"))
    parser.add_argument("--one", choices=OBJECTIVES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.model, arguments.data, arguments.tokenizer, arguments.cache)))
        return
    rounds = [{name: _in_own_process(name) for name in arguments.objectives} for _ in range(arguments.rounds)]
    rows: dict[str, dict[str, Any]] = {}
    for name in arguments.objectives:
        ratios = {key: sorted(one[name][key] / one["orpo"][key] for one in rounds) for key in ("seconds", "peak_bytes")}
        rows[name] = {
            **{key: statistics.median(one[name][key] for one in rounds) for key in ratios},
            **{f"{key}_to_orpo": [r[0], statistics.median(r), r[-1]] for key, r in ratios.items()},
        }
        low, middle, high = rows[name]["seconds_to_orpo"]
        print(
            f"{name:18} {rows[name]['seconds']:.2f} s a step, {middle:.2f} of ORPO's ({low:.2f} to {high:.2f}); "
            f"peak {rows[name]['peak_bytes'] / 2**20:.0f} MiB, {rows[name]['peak_bytes_to_orpo'][1]:.2f} of ORPO's"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    machine = {"processor": platform.machine(), "cpus": psutil.cpu_count(), "python": platform.python_version()}
    result = {
        "commit": commit,
        "machine": machine,
        "model": Path(arguments.model).name,
        "pairs_in_a_step": 8,
        "rounds": rounds,
        "medians": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _in_own_process(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
