"""Rollouts through the real stack: after every sync engine and trainer agree, whoever trains and whoever writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from live_models import SHAPES
from rollout_runs import settings
from safetensors.torch import load_file

from orpo_ray.training.launcher import train

HERE = Path(__file__).parent
BOUND = 1e-4
"""Nats a token in float32."""
MOVING = ("optim.lr=1e-2", "rollouts.epochs=1", "train.max_steps=6", "scaling.cpus_per_worker=1")
"""Three rounds of two steps, whose policies are far from each other."""
WHOLE = "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
"""At the default threshold ZeRO-3 would leave such small parameters whole."""
LORA = "model.lora={rank: 4, alpha: 16}"
RLOO = ("objective={name: rloo}", "rollouts.samples=3")
GRPO = ("objective={name: grpo}", "rollouts.samples=3")


def assert_rounds_agree(lines: Sequence[dict[str, Any]], rounds: int = 3, bound: float = BOUND) -> None:
    """Of every round, whose policies differ; and the first begins where its reference is."""
    first, *others = found = [line for line in lines if "round" in line]
    assert [line["round"] for line in found] == list(range(rounds))
    assert all(line["mismatch_mean"] <= line["mismatch_max"] <= bound for line in found)
    assert first["ratio"] == pytest.approx(1, abs=1e-6)
    assert first["approx_kl"] < 1e-9 and abs(first["kl"]) < 1e-9 and first["clip_fraction"] == 0
    assert all(abs(line["kl"]) > 1e-3 for line in others), "weights have moved"


# Ranks and ZeRO, with an engine in the process of rank 0 -----------------------------------------------------------

SMALL = "train.tokens_per_microbatch=150"
ALONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "ppo": ("opt tied", ()),
    "ppo untied lora": ("llama untied", (LORA,)),
    "rloo untied": ("llama untied", RLOO),
    "grpo lora": ("opt tied", (*GRPO, LORA)),
}
STAGES = {"ppo": (0, 2, 3), "ppo untied lora": (0, 2, 3), "rloo untied": (3,), "grpo lora": (2,)}
TOGETHER = {
    f"{name} zero {stage}": (network, (*own, SMALL, f"train.zero_stage={stage}", *([WHOLE] if stage == 3 else [])))
    for name, (network, own) in ALONE.items()
    for stage in STAGES[name]
}
STOPPED = {"stopped": TOGETHER["ppo zero 2"]}
"""In its last evaluation."""
PHASES = {1: ALONE, 2: TOGETHER | STOPPED}
"""Runs by the number of ranks."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Lines and first gradients of every run: real processes, real gloo."""
    found: dict[str, dict[str, Any]] = {}
    for ranks, jobs in PHASES.items():
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        torch.save(
            {
                name: {"network": network, "overrides": (*MOVING, *own)} | ({"stop_at": 6} if name in STOPPED else {})
                for name, (network, own) in jobs.items()
            },
            folder / "jobs.pt",
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
            "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)]),
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "rollout_process.py"), str(folder)],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=(folder / f"log-{rank}").open("wb"), stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        try:
            codes = [process.wait(timeout=400) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * ranks, (folder / "log-0").read_text()[-4000:]
        found |= torch.load(folder / "results.pt", weights_only=False)
    return found


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_every_sync_agrees_on_any_ranks(runs: dict[str, dict[str, Any]], name: str) -> None:
    assert_rounds_agree(runs[name]["lines"])


def test_all_ranks_hear_a_stop_in_an_evaluation(runs: dict[str, dict[str, Any]]) -> None:
    stopped, whole = runs["stopped"], runs["ppo zero 2"]
    assert stopped["stopped"].step == 6 and stopped["stopped"].evaluation_due
    assert stopped["lines"] == [] and stopped["evaluations"] == whole["evaluations"][-1:]


@pytest.mark.parametrize("name", TOGETHER)
def test_gradients_of_two_ranks_are_those_of_one(runs: dict[str, dict[str, Any]], name: str) -> None:
    alone, together = runs[name.rpartition(" zero ")[0]], runs[name]
    assert together["gradients"].keys() == alone["gradients"].keys()
    assert any(parameter.startswith("critic.") for parameter in alone["gradients"]) == name.startswith("ppo")
    largest = max(float(gradient.abs().max()) for gradient in alone["gradients"].values())
    assert largest > 1e-2
    for parameter, gradient in alone["gradients"].items():
        difference = float((together["gradients"][parameter] - gradient).abs().max())
        assert difference <= 1e-6 * max(1, largest), parameter
    one, two = alone["lines"][0], together["lines"][0]
    for metric in ("loss", "reward", "reward_sd", "response_tokens", "share_cut", "entropy", "grad_norm"):
        assert two[metric] == pytest.approx(one[metric], rel=1e-5, abs=1e-6), metric


# Engines of vLLM, and workers of Ray Train -------------------------------------------------------------------------

VLLM: dict[str, tuple[str, tuple[str, ...]]] = {
    "ppo tied, zero 3, two workers": (
        "opt tied", ("train.zero_stage=3", WHOLE, "scaling.num_workers=2", "rollouts.temperature=0.8"),
    ),
    "grpo untied, zero 2, two workers, lora": (
        "llama untied", (*GRPO, LORA, "train.zero_stage=2", "scaling.num_workers=2"),
    ),
    "rloo tied, zero 0, one worker, lora": (
        "opt tied", (*RLOO, LORA, "train.zero_stage=0", "scaling.num_workers=1"),
    ),
    "ppo untied, zero 3, two workers, lora": (
        "opt untied", (LORA, "train.zero_stage=3", WHOLE, "scaling.num_workers=2"),
    ),
    "ppo of the toy model, zero 0, two workers": (
        "opt tied",
        ("model.name_or_path=toy", "objective.critic=toy", "train.zero_stage=0", "scaling.num_workers=2"),
    ),
}  # fmt: skip
LONG = {"ppo untied, zero 3, two workers, lora", "ppo of the toy model, zero 0, two workers"}


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in line]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in VLLM])
def test_every_sync_with_vllm_agrees(ray_cluster: None, name: str, tmp_path: Path) -> None:
    network, own = VLLM[name]
    config = settings(tmp_path, *MOVING, "rollouts.engine=vllm", *own, network=SHAPES[network])
    assert_rounds_agree(lines(train(config).path))


def test_in_bfloat16_the_bound_is_its_own(ray_cluster: None, tmp_path: Path) -> None:
    """Numbers of eight bits: what is apart is what the run says, not what a bound of float32 would."""
    config = settings(
        tmp_path, *RLOO, *MOVING, "rollouts.engine=vllm", "model.dtype=bfloat16", "scaling.num_workers=1",
        network=SHAPES["llama untied"],
    )  # fmt: skip
    found = [line for line in lines(train(config).path) if "round" in line]
    assert len(found) == 3
    assert all(line["mismatch_max"] > 1e-4 and line["mismatch_mean"] < 4 * 2**-7 for line in found)
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-6) and found[0]["kl"] == 0


def test_weights_do_not_depend_on_the_number_of_engines(ray_cluster: None, tmp_path: Path) -> None:
    own = (*GRPO, *MOVING, "rollouts.engine=transformers", "scaling.num_workers=1")
    ends = []
    for engines in (1, 2):
        config = settings(tmp_path / str(engines), *own, f"rollouts.engines={engines}")
        run = train(config).path
        assert_rounds_agree(lines(run))
        ends.append(load_file(run / "model" / "model.safetensors"))
    one, two = ends
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
