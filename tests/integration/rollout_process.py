"""One rank of `test_rollouts.py`: runs on rollouts with engine and scorer in the process of rank 0."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from engine_process import watch_gradients
from live_models import SHAPES
from rollout_runs import Trained, settings
from rollout_stops import asking, slow_at

from orpo_ray.training import rollouts
from orpo_ray.training.deepspeed_engine import engine_for
from orpo_ray.training.engine import Engine
from orpo_ray.training.loop import Wanted


def trained(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The lines of a run, and the gradients of its first step."""
    rank = torch.distributed.get_rank()
    if rank == 0:
        settings(folder, network=SHAPES[job["network"]])
    torch.distributed.barrier()  # networks and prompts are there
    config = settings(folder, *job["overrides"])
    gradients: dict[str, torch.Tensor] = {}

    def engine(policy: Any) -> Engine:
        nonlocal gradients
        made = engine_for(policy, config, torch.device("cpu"))
        gradients = watch_gradients(made)
        return made

    stopped = None
    if "stop_at" in job:
        rollouts._PATIENCE = 0.05
        stopped = Trained(
            config, engine=engine, writers=slow_at(job["stop_at"]), sink=asking(Wanted.LAST_CHECKPOINT)
        ).state
    run = Trained(config, engine=engine, begin=0 if stopped is None else stopped.step)
    return {"lines": run.lines, "evaluations": run.evaluations, "gradients": gradients, "stopped": stopped}


def main(out: str) -> None:
    """Run every job of the file `out/jobs.pt`; rank 0 saves the results."""
    folder = Path(out)
    jobs: dict[str, dict[str, Any]] = torch.load(folder / "jobs.pt", weights_only=False)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {name: trained(folder / name.replace(" ", "-"), job) for name, job in jobs.items()}
    if os.environ["RANK"] == "0":
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
