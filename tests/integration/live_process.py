"""vLLM's side of `test_live_vllm.py`: engines of several models, one after another, each with weights of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from live_models import asked, everything

from orpo_ray.errors import UserError
from orpo_ray.inference import generation
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import pack_weights
from orpo_ray.inference.live_vllm import LiveVllm

LONG = 150
"""Tokens of the longer prompts: more than a block of vLLM's prefix cache on a CPU."""


def told(call: Any) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "nothing"


def synced(job: dict[str, Any]) -> dict[str, Any]:
    """What an engine draws at first and by each of the weights, all by the same requests."""
    live = LiveVllm(job["options"])
    drawn = [everything(live, asked(length=LONG))]
    for step, weights in enumerate(job["weights"], start=1):
        packed = pack_weights(weights)
        for each in packed.values():
            each.array.flags.writeable = False  # as what comes from the object store
        live.load(packed, step)
        drawn.append(everything(live, asked(length=LONG)))
    found: dict[str, Any] = {"drawn": drawn}
    if job.get("more"):
        found |= more(live, job["weights"])
    return found


def more(live: LiveVllm, weights: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    found: dict[str, Any] = {"alone": {}}
    for request in asked(length=LONG):
        found["alone"] |= everything(live, [request])
    found["many"] = everything(live, [Request(i, 0, [0, 5, 9, 7], i) for i in range(300)])

    generation.SECONDS_BETWEEN_ANSWERS = 0.0
    work = [Request(i, 0, [0] * (1 + i % 25), i) for i in range(300)]
    ended = live.advance(work)
    found["at work"] = len(work) - len(ended)
    found["while at work"] = told(lambda: live.load(pack_weights(weights[0]), 8))
    while live.advance([]):
        pass
    live.load(pack_weights(weights[0]), 8)
    found["after"] = everything(live, asked(length=LONG))
    found |= slept(live, weights[0])

    less = dict(list(weights[1].items())[:-2])
    found["missing"] = told(lambda: live.load(pack_weights(less), 9))
    found["unknown"] = told(lambda: live.load(pack_weights(weights[1] | {"score": torch.ones(1)}), 9))
    found["too long"] = told(lambda: live.advance([Request(3, 0, [5] * 200, 1)]))
    found["unchanged"] = everything(live, asked(length=LONG))
    spoilt = {name: torch.full_like(weight, torch.nan) for name, weight in weights[1].items()}
    live.load(pack_weights(spoilt), 10)
    found["no numbers"] = told(lambda: everything(live, asked()))
    return found


def slept(live: LiveVllm, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What vLLM is asked for by a sleep, by a load after it and by one of an engine that was awake, and what it draws
    then. On a CPU vLLM takes all of it, and keeps its memory."""
    engine, calls = live._engine, []

    def told_of(name: str) -> None:
        own = getattr(engine, name)

        def call(*given: Any, **named: Any) -> Any:
            said = [*given, *named.get("tags", []), *([named["level"]] if "level" in named else [])]
            calls.append([name, *map(str, said)])
            return own(*given, **named)

        setattr(engine, name, call)

    for name in ("sleep", "wake_up", "collective_rpc", "reset_prefix_cache"):
        told_of(name)
    live.sleep()
    sleeping = bool(engine.llm_engine.is_sleeping())
    try:
        live.advance(asked())
    except RuntimeError as error:
        refused = str(error)
    live.load(pack_weights(weights), 8)
    found = {"slept": everything(live, asked(length=LONG)), "sleeping": sleeping, "refused": refused}
    calls.append(["awake"])
    live.load(pack_weights(weights), 8)
    for name in ("sleep", "wake_up", "collective_rpc", "reset_prefix_cache"):
        delattr(engine, name)
    return {**found, "calls": calls}


def main(folder: Path) -> None:
    """Run every job of `folder/jobs.pt`."""
    results = {name: synced(job) for name, job in torch.load(folder / "jobs.pt", weights_only=False).items()}
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
