"""Seconds of an optimizer step, all of it: a run's own loop, engine, watchdog and recorder, on ranks without Ray.

    python benchmarks/steps.py configs/toy-orpo.yaml model.name_or_path=toy --steps 60 --warm-up 10 --ranks 2

Takes a training configuration, or a benchmark's (then its `run`), with dotted overrides. Prints a JSON object: of a
step after the warm-up the median seconds, and the median CPU seconds of this rank, which other work on the machine
disturbs less; seconds of the evaluation at the end; the losses; a sum of the weights after the last step. Two trees are
compared by running this file against each in turn, by way of PYTHONPATH.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--profile", help="a file for cProfile's statistics of rank 0")
    options = parser.parse_intermixed_args()
    from torch.multiprocessing.spawn import spawn

    at = "cluster" if importlib.util.find_spec("orpo_ray.cluster") else "training"  # before issue 14
    environment = importlib.import_module(f"orpo_ray.{at}.allocator").ENVIRONMENT

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(options.ranks), DS_ACCELERATOR="cpu",
            OMP_NUM_THREADS=str(options.threads), **environment,
        )  # fmt: skip
        spawn(_rank, (options, folder), nprocs=options.ranks)  # type: ignore[no-untyped-call]
        sys.stdout.write((Path(folder) / "result.json").read_text() + "\n")


def _rank(rank: int, options: argparse.Namespace, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.dup2(2, 1)  # what libraries print is no result
    import torch

    from orpo_ray.config import parse_config, read_yaml
    from orpo_ray.data.prepare import prepare
    from orpo_ray.modeling.loading import load_tokenizer
    from orpo_ray.modeling.memory import set_recomputation
    from orpo_ray.modeling.scorer import load_scorer
    from orpo_ray.objectives.registry import build_objective
    from orpo_ray.storage.run_folder import RunFolder
    from orpo_ray.training.deepspeed_engine import engine_for
    from orpo_ray.training.loop import Sink, State, run
    from orpo_ray.training.recorder import Recorder
    from orpo_ray.training.source import PairSource
    from orpo_ray.training.watchdog import Watchdog

    torch.set_num_threads(options.threads)
    torch.distributed.init_process_group("gloo")
    mapping = read_yaml(options.config)
    settings = [f"train.max_steps={options.steps}", f"storage.path={folder}", "train.eval_every_steps=1000000"]
    settings += ["name=steps", *options.overrides]
    config = parse_config(mapping.get("run", mapping), settings, options.config)
    tokenizer = load_tokenizer(config.model)
    for turn in range(options.ranks):  # the first fills the cache
        if turn == rank:
            data = prepare(config, tokenizer)
        torch.distributed.barrier()
    policy = load_scorer(build_objective(config.objective).model, config.model, seed=config.seed)
    set_recomputation(policy, "none" if config.train.memory == "auto" else config.train.memory)
    engine = engine_for(policy, config, torch.device("cpu"))
    run_folder = RunFolder(config.run_dir)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(run_folder, config, resumed_at=0) if rank == 0 else None
    watchdog = Watchdog(engine, config.scaling.hang_timeout, run_folder.note)
    lines: list[dict[str, Any]] = []
    ends: list[tuple[float, float]] = []

    class Times(Sink):
        def metrics(self, line: dict[str, Any]) -> None:
            if recorder:
                recorder.write(line)
            lines.append(line)
            ends.append((time.perf_counter(), time.process_time()))

    if options.profile and rank == 0:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(run, engine, config, PairSource(engine, config, data.train, data.eval), Times(), State())
        profile.dump_stats(options.profile)
    else:
        run(engine, config, PairSource(engine, config, data.train, data.eval), Times(), State())
    watchdog.stop()
    weights = engine.weights()
    if weights is not None:
        assert recorder is not None
        recorder.close()
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(weights[name].detach().float().numpy().tobytes())
        both = [(wall - wall_before, cpu - cpu_before) for (wall_before, cpu_before), (wall, cpu) in pairwise(ends)]
        seconds, cpu_seconds = zip(*both, strict=True)
        # The first line and the last are those of evaluations.
        timed = seconds[options.warm_up : -1]
        result = {
            "engine": type(engine).__name__,
            "steps": len(timed),
            "tokens": statistics.mean(line["tokens"] for line in lines if "loss" in line),
            "mfu": statistics.median(line["mfu"] for line in lines if "loss" in line),
            "median_seconds": statistics.median(timed),
            "fastest_seconds": min(timed),
            "median_cpu_seconds": statistics.median(cpu_seconds[options.warm_up : -1]),
            "evaluation_seconds": seconds[-1],
            "losses": [line["loss"] for line in lines if "loss" in line],
            "grad_norms": [line["grad_norm"] for line in lines if "loss" in line],
            "eval_loss": lines[-1]["eval_loss"],
            "weights": digest.hexdigest(),
        }
        (Path(folder) / "result.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
