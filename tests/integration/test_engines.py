"""The trajectory does not depend on ranks, ZeRO stage or micro-batches; a resumed run ends in the same bits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import policy

from orpo_ray.modeling.lora import plain_name

HERE = Path(__file__).parent
SMALL, LARGE = 120, 100_000  # tokens in a micro-batch: several a step, or one

_PLAIN = {"tokens_per_microbatch": LARGE}
_LORA = {"rank": 4, "alpha": 8}
JOBS: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "torch": {"engine": "torch", "settings": {**_PLAIN}},
        "torch small": {"engine": "torch", "settings": {"tokens_per_microbatch": SMALL}},
        **{f"zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage}} for stage in (0, 2, 3)},
        "zero 2 small": {"settings": {"tokens_per_microbatch": SMALL, "zero_stage": 2}},
        "lora torch": {"engine": "torch", "settings": {**_PLAIN, "lora": _LORA}},
        **{f"lora zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage, "lora": _LORA}} for stage in (2, 3)},
    },
    2: {
        **{
            f"zero {stage} {name}": {"settings": {"tokens_per_microbatch": budget, "zero_stage": stage}}
            for stage in (0, 1, 2, 3)
            for name, budget in {"small": SMALL, "large": LARGE}.items()
        },
        "zero 3 checkpointing": {"settings": {"tokens_per_microbatch": SMALL, "zero_stage": 3, "checkpointing": True}},
        "zero 2 offload": {"settings": {**_PLAIN, "zero_stage": 2, "offload_optimizer": True}},
        **{
            f"{dtype} zero {stage}": {
                "settings": {"tokens_per_microbatch": SMALL, "zero_stage": stage, "dtype": dtype},
                "checkpoints": f"{dtype}-{stage}",
            }
            for dtype in ("bfloat16", "float32")
            for stage in (2, 3)
        },
        **{
            f"{dtype} zero {stage} resumed": {
                "settings": {"tokens_per_microbatch": SMALL, "zero_stage": stage, "dtype": dtype},
                "checkpoints": f"{dtype}-{stage}",
                "resume": 4,
            }
            for dtype in ("bfloat16", "float32")
            for stage in (2, 3)
        },
        **{
            f"{dtype} lora zero {stage}{' resumed' if resume else ''}": {
                "settings": {
                    "tokens_per_microbatch": SMALL,
                    "zero_stage": stage,
                    "dtype": dtype,
                    "checkpointing": True,
                    "lora": {**_LORA, "dropout": 0.2 if dtype == "bfloat16" else 0.0},
                },
                "checkpoints": f"{dtype}-lora-{stage}",
                "resume": resume,
            }
            for dtype in ("bfloat16", "float32")
            for stage in (2, 3)
            for resume in (None, 4)
        },
        **{f"lora zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage, "lora": _LORA}} for stage in (0, 1)},
        "bfloat16 zero 0": {"settings": {**_PLAIN, "dtype": "bfloat16"}},
        "bfloat16 zero 1": {"settings": {**_PLAIN, "zero_stage": 1, "dtype": "bfloat16"}},
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Every job, on one and on two ranks: real processes, real gloo."""
    by_ranks = {}
    for ranks, jobs in JOBS.items():
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        torch.save(jobs, folder / "jobs.pt")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
            "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, str(HERE / "engine_process.py"), str(folder)]
        processes = [
            subprocess.Popen(
                command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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
        by_ranks[ranks] = torch.load(folder / f"results-{ranks}.pt", weights_only=False)
    return by_ranks


FLOAT32 = [(ranks, name) for ranks, jobs in JOBS.items() for name in jobs if "bfloat16" not in name]


@pytest.mark.parametrize(("ranks", "name"), [job for job in FLOAT32 if "resumed" not in job[1]])
def test_same_trajectory_everywhere(results: dict[int, dict[str, Any]], ranks: int, name: str) -> None:
    """Against one process, one micro-batch, plain PyTorch."""
    reference, other = results[1]["lora torch" if "lora" in name else "torch"], results[ranks][name]
    assert other["weights"].keys() == reference["weights"].keys()
    assert other["gradients"].keys() == reference["gradients"].keys()
    for expected, actual in zip(reference["lines"], other["lines"], strict=True):
        assert set(expected) == set(actual)
        for key in set(expected) - {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}:
            assert actual[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), (key, expected["step"])
    assert other["lines"][1]["loss"] == pytest.approx(reference["lines"][1]["loss"], abs=1e-6)
    for parameter, gradient in reference["gradients"].items():
        assert (other["gradients"][parameter] - gradient).abs().max() <= 1e-6, parameter
    for parameter, weight in reference["weights"].items():
        assert (other["weights"][parameter] - weight).abs().max() <= 1e-5, parameter


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float32 lora", "bfloat16 lora"])
def test_resume_is_bitwise_exact(results: dict[int, dict[str, Any]], kind: str, stage: int) -> None:
    whole, resumed = results[2][f"{kind} zero {stage}"], results[2][f"{kind} zero {stage} resumed"]
    for parameter, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][parameter]), parameter
    timing = {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}
    expected = [{k: v for k, v in line.items() if k not in timing} for line in whole["lines"] if line["step"] > 4]
    actual = [{k: v for k, v in line.items() if k not in timing} for line in resumed["lines"]]
    assert actual == expected


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_follows_float32(results: dict[int, dict[str, Any]], stage: int) -> None:
    reference, half = results[1]["torch"], results[2][f"bfloat16 zero {stage}"]
    expected, actual = reference["lines"][-1]["eval_loss"], half["lines"][-1]["eval_loss"]
    assert actual == pytest.approx(expected, rel=0.01)
    assert reference["lines"][-1]["eval_loss"] < reference["lines"][0]["eval_loss"] - 0.05


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_of_adapters_holds_no_base(results: dict[int, dict[str, Any]], stage: int) -> None:
    """Not under the second name of the tied embeddings either; a full one holds every weight."""
    names = {f"model.{name}" for name in results[1]["lora torch"]["weights"]}
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 6  # halves, layers, matrices of a layer
    assert results[2][f"float32 lora zero {stage}"]["checkpointed"] == adapters
    assert results[2][f"float32 zero {stage}"]["checkpointed"] == {f"model.{n}" for n in results[1]["torch"]["weights"]}


@pytest.mark.parametrize(("ranks", "name"), [job for job in FLOAT32 if "lora" in job[1]])
def test_adapters_leave_their_base_alone(results: dict[int, dict[str, Any]], ranks: int, name: str) -> None:
    base = {plain_name(k): weight for k, weight in results[ranks][name]["weights"].items() if ".lora_" not in k}
    start = policy("float32", False, None).model.state_dict()
    assert base.keys() == start.keys()
    for parameter, weight in base.items():
        assert torch.equal(weight, start[parameter]), parameter


def test_the_steps_are_steps(results: dict[int, dict[str, Any]]) -> None:
    """Ten steps of 12 pairs over 40 pairs: epochs end in a smaller step, and each is evaluated."""
    lines = results[1]["torch"]["lines"]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, 8, 10]
