"""The trajectory does not depend on ranks, ZeRO stage or micro-batches; a resumed run ends in the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import RESUMED_AT, STEPS, policy
from ranks import run_jobs
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from orpo_ray.modeling.lora import plain_name

SMALL, LARGE = 120, 100_000  # tokens in a micro-batch: several a step, or one

_PLAIN = {"tokens_per_microbatch": LARGE}
_LORA = {"rank": 4, "alpha": 8}
_RECORDS = ("rankings", "labels")
KINDS = {
    f"{dtype}{' lora' * lora} zero {stage}": {
        "tokens_per_microbatch": SMALL,
        "zero_stage": stage,
        "dtype": dtype,
        **({"checkpointing": True, "lora": {**_LORA, "dropout": 0.2 if dtype == "bfloat16" else 0.0}} if lora else {}),
    }
    for dtype in ("bfloat16", "float32")
    for stage in (0, 1, 2, 3)
    for lora in (False, True)
} | {
    f"{dtype} lora experts zero {stage}": {
        "tokens_per_microbatch": SMALL, "zero_stage": stage, "dtype": dtype, "lora": _LORA, "experts": True,
        "checkpointing": stage == 2,
    }
    for dtype, stages in (("float32", (0, 1, 2, 3)), ("bfloat16", (3,)))
    for stage in stages
} | {
    f"float32 {records} zero {stage}": {"tokens_per_microbatch": SMALL, "zero_stage": stage, "records": records}
    for records, stage in (("rankings", 3), ("labels", 0), ("labels", 2), ("labels", 3))
}  # fmt: skip
"""What is resumed on two ranks."""

ALONE: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch", "settings": {**_PLAIN}, "save": "alone"},
    "torch small": {"engine": "torch", "settings": {"tokens_per_microbatch": SMALL}},
    **{f"zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage}} for stage in (1, 2, 3)},
    "zero 2 small": {"settings": {"tokens_per_microbatch": SMALL, "zero_stage": 2}},
    **{f"{records} torch": {"engine": "torch", "settings": {**_PLAIN, "records": records}} for records in _RECORDS},
    **{
        f"{records} zero 2 small": {"settings": {"tokens_per_microbatch": SMALL, "zero_stage": 2, "records": records}}
        for records in _RECORDS
    },
    "lora torch": {"engine": "torch", "settings": {**_PLAIN, "lora": _LORA}},
    "lora experts torch": {"engine": "torch", "settings": {**_PLAIN, "lora": _LORA, "experts": True}},
    **{f"lora zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage, "lora": _LORA}} for stage in (1, 2, 3)},
}
TOGETHER: dict[str, dict[str, Any]] = {
    **{
        f"zero {stage} {name}": {"settings": {"tokens_per_microbatch": budget, "zero_stage": stage}}
        for stage in (0, 1, 2, 3)
        for name, budget in {"small": SMALL, "large": LARGE}.items()
    },
    "zero 3 checkpointing": {"settings": {"tokens_per_microbatch": SMALL, "zero_stage": 3, "checkpointing": True}},
    "zero 2 offload": {"settings": {**_PLAIN, "zero_stage": 2, "offload_optimizer": True}},
    **{name: {"settings": settings, "save": name} for name, settings in KINDS.items()},
    **{f"{name} resumed": {"settings": settings, "resume": name} for name, settings in KINDS.items()},
    # From one rank on to two, and from one stage on to the other; `AGAIN` goes on from there.
    **{
        f"zero {stage} resumed from one rank": {"settings": {**_PLAIN, "zero_stage": stage}, "resume": "alone"}
        for stage in (0, 1, 2, 3)
    },
    "zero 3 resumed from zero 2": {"settings": {**_PLAIN, "zero_stage": 3}, "resume": "float32 zero 2"},
    "zero 2 resumed from zero 3": {"settings": {**_PLAIN, "zero_stage": 2}, "resume": "float32 zero 3"},
    "zero 2 offload resumed": {
        "settings": {**_PLAIN, "zero_stage": 2, "offload_optimizer": True}, "resume": "float32 zero 3"
    },
    **{f"lora zero {stage}": {"settings": {**_PLAIN, "zero_stage": stage, "lora": _LORA}} for stage in (0, 1)},
    **{
        f"bfloat16 sum zero {stage}{' offload' * offload}": {
            "sum": True, "settings": {**_PLAIN, "zero_stage": stage, "offload_optimizer": offload}
        }
        for stage in (0, 1, 2, 3)
        for offload in (False, True)[: 1 + (stage > 0)]
    },
    "mapped zero 3": {"file": "model/model.safetensors", "settings": {**_PLAIN, "zero_stage": 3}},
    "mapped zero 3 bfloat16": {
        "file": "model/model.safetensors", "settings": {**_PLAIN, "zero_stage": 3, "dtype": "bfloat16"}
    },
}  # fmt: skip
SUMS = [name for name, job in TOGETHER.items() if "sum" in job]
AGAIN: dict[str, dict[str, Any]] = {
    f"torch resumed from {kind}": {"engine": "torch", "settings": {**_PLAIN}, "resume": f"float32 {kind}"}
    for kind in ("zero 0", "zero 1", "zero 2", "zero 3")
}
PHASES = {"alone": (1, ALONE), "together": (2, TOGETHER), "again": (1, AGAIN)}
"""Ranks and jobs; each phase may resume what one before has saved."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def results(storage: Path) -> dict[str, dict[str, Any]]:
    """Every job, on one and on two ranks: real processes, real gloo."""
    by_phase = {}
    large_enough_for_pages = OPTConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128,
        max_position_embeddings=64, word_embed_proj_dim=64,
    )  # fmt: skip
    OPTForCausalLM(large_enough_for_pages).save_pretrained(storage / "model")
    for phase, (ranks, jobs) in PHASES.items():
        folder = storage / phase
        folder.mkdir()
        by_phase[phase] = run_jobs("engine_process.py", folder, jobs, ranks)
    return by_phase


FLOAT32 = [
    (phase, name)
    for phase, (_, jobs) in PHASES.items()
    for name, job in jobs.items()
    if "bfloat16" not in name and "file" not in job
]


@pytest.mark.parametrize(("phase", "name"), [job for job in FLOAT32 if "resumed" not in job[1]])
def test_same_trajectory_everywhere(results: dict[str, dict[str, Any]], phase: str, name: str) -> None:
    """Against one process, one micro-batch, plain PyTorch."""
    kind = "".join(f"{kind} " for kind in ("lora", "experts", *_RECORDS) if kind in name)
    reference, other = results["alone"][f"{kind}torch"], results[phase][name]
    assert other["weights"].keys() == reference["weights"].keys()
    assert other["gradients"].keys() == reference["gradients"].keys()
    for expected, actual in zip(reference["lines"], other["lines"], strict=True):
        assert_same_line(expected, actual)
    assert other["lines"][1]["loss"] == pytest.approx(reference["lines"][1]["loss"], abs=1e-6)
    for parameter, gradient in reference["gradients"].items():
        assert (other["gradients"][parameter] - gradient).abs().max() <= 1e-6, parameter
    for parameter, weight in reference["weights"].items():
        assert (other["weights"][parameter] - weight).abs().max() <= 1e-5, parameter


def assert_same_line(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    assert set(expected) == set(actual)
    for key in set(expected) - {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}:
        same = pytest.approx(expected[key], rel=1e-4, abs=1e-5, nan_ok=True)  # the mean of a label that a step lacks
        assert actual[key] == same, (key, expected["step"])


@pytest.mark.parametrize(("phase", "name"), [job for job in FLOAT32 if "resumed from" in job[1]])
def test_any_engine_on_any_ranks_continues(results: dict[str, dict[str, Any]], phase: str, name: str) -> None:
    reference, other = results["alone"]["torch"], results[phase][name]
    later = [line for line in reference["lines"] if line["step"] > RESUMED_AT]
    for expected, actual in zip(later, other["lines"], strict=True):
        assert_same_line(expected, actual)
    for parameter, weight in reference["weights"].items():
        assert (other["weights"][parameter] - weight).abs().max() <= 1e-5, parameter


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bitwise_exact(results: dict[str, dict[str, Any]], kind: str) -> None:
    whole, resumed = results["together"][kind], results["together"][f"{kind} resumed"]
    for parameter, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][parameter]), parameter
    timing = {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}
    expected = [
        {k: v for k, v in line.items() if k not in timing} for line in whole["lines"] if line["step"] > RESUMED_AT
    ]
    actual = [{k: v for k, v in line.items() if k not in timing} for line in resumed["lines"]]
    assert repr(actual) == repr(expected)  # which tells all digits, and that not-a-number is as before


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_follows_float32(results: dict[str, dict[str, Any]], stage: int) -> None:
    reference, half = results["alone"]["torch"], results["together"][f"bfloat16 zero {stage}"]
    expected, actual = reference["lines"][-1]["eval_loss"], half["lines"][-1]["eval_loss"]
    assert actual == pytest.approx(expected, rel=0.01)
    assert reference["lines"][-1]["eval_loss"] < reference["lines"][0]["eval_loss"] - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_each_trained_element_once(
    results: dict[str, dict[str, Any]], storage: Path, kind: str
) -> None:
    """Over the files of both ranks, as the network has it; of a model with adapters those alone, not the base."""
    weights = results["together"][kind]["weights"]
    trained = {f"model.{n}": w.numel() for n, w in weights.items() if "lora" not in kind or ".lora_" in n}
    trained.pop("model.lm_head.weight", None)  # tied
    assert len(trained) == 2 * 2 * 6 or "lora" not in kind  # halves, layers, matrices of a layer, or weights of experts
    held: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in (storage / kind / f"step-{STEPS:08d}").glob("*.safetensors"):
        for key, vector in load_file(file).items():
            where, _, part = key.rpartition("/")
            name, _, start = where.rpartition("@")
            held.setdefault(f"{name}/{part}", []).append((int(start), vector))
    assert held.keys() == {f"{name}/{part}" for name in trained for part in ("weight", "exp_avg", "exp_avg_sq")}
    for key, runs in held.items():
        name, _, part = key.rpartition("/")
        whole = joined(runs)
        assert len(whole) == trained[name], key
        if part == "weight":
            weight = weights[name.removeprefix("model.")]
            assert torch.equal(whole.to(weight.dtype), weight.flatten()), key


def joined(runs: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Runs of elements that are to follow one on the other from 0 on."""
    end = 0
    for start, elements in sorted(runs, key=lambda run: run[0]):
        assert start == end
        end += len(elements)
    return torch.cat([elements for _, elements in sorted(runs, key=lambda run: run[0])])


@pytest.mark.parametrize("name", SUMS)
def test_gradients_in_bfloat16_are_added_up_in_float32(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results["together"][name]["norm"] == pytest.approx(8 * (1 + 2 * 2.0**-9), rel=1e-6)


@pytest.mark.parametrize("name", SUMS)
def test_a_gradient_in_bfloat16_that_is_not_finite_updates_nothing(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    found = results["together"][name]
    assert not math.isfinite(found["spoilt"]) and not found["moved"]


def test_zero_3_takes_its_parts_from_the_files(results: dict[str, dict[str, Any]], storage: Path) -> None:
    """No rank has a copy of all weights at any time: none has written to what it has mapped from the file."""
    found, runs = results["together"]["mapped zero 3"], dict[str, list[tuple[int, torch.Tensor]]]()
    assert found["copied"] == [0, 0]
    for name, start, elements in found["pieces"]:
        runs.setdefault(name.removeprefix("model."), []).append((start, elements))
    stored = load_file(storage / "model/model.safetensors")
    assert runs.keys() == stored.keys()
    for name, parts in runs.items():
        assert torch.equal(joined(parts), stored[name].flatten()), name


@pytest.mark.parametrize("name", ["mapped zero 3", "mapped zero 3 bfloat16"])
def test_the_probe_runs_again_over_ranks(results: dict[str, dict[str, Any]], name: str) -> None:
    """It passes where the parts are those of the model, and on every rank it does not where those of one are not."""
    found = results["together"][name]
    assert found["training"]
    for told in found["told"]:
        assert told.startswith("x: divided among ranks it gives other numbers than whole: by ")


@pytest.mark.parametrize(("phase", "name"), [job for job in FLOAT32 if "lora" in job[1]])
def test_adapters_leave_their_base_alone(results: dict[str, dict[str, Any]], phase: str, name: str) -> None:
    base = {plain_name(k): weight for k, weight in results[phase][name]["weights"].items() if ".lora_" not in k}
    start = policy("float32", False, None, "experts" in name).model.state_dict()
    assert base.keys() == start.keys()
    for parameter, weight in base.items():
        assert torch.equal(weight, start[parameter]), parameter


def test_the_steps_are_steps(results: dict[str, dict[str, Any]]) -> None:
    """Steps of 12 pairs over 40 pairs: epochs end in a smaller step, and each is evaluated."""
    lines = results["alone"]["torch"]["lines"]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, STEPS]
