"""The pieces of `doctor --gpu`: a stage that fails beside the others, the baseline, and a GPU's part by stand-ins."""

from __future__ import annotations

import gc
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import varlen_cpu
from families import FAMILIES, build, random_examples
from torch.profiler import ProfilerActivity
from transformers import AttentionInterface
from typer.testing import CliRunner

from orpo_ray.cli import app
from orpo_ray.doctor.gpu import SECONDS, machine, parity, run, steps
from orpo_ray.doctor.gpu.adapters import add_adapters
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.counted import CountedTensors
from orpo_ray.doctor.gpu.device import Cpu, Cuda
from orpo_ray.doctor.gpu.lines import Lines
from orpo_ray.doctor.gpu.padded import collate, padded_loss
from orpo_ray.doctor.gpu.repeated import end_with
from orpo_ray.doctor.gpu.run import check_gpu, take
from orpo_ray.doctor.gpu.sizes import REAL, TOY, Model, totals
from orpo_ray.doctor.gpu.summary import fault, summary
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.memory import activation_bytes
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.orpo import orpo

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check() -> Check:
    return Check(Cpu(), TOY)


def started() -> Lines:
    return Lines(time.perf_counter())


class TestStages:
    def test_one_that_fails_says_so_and_keeps_what_it_found(self, check: Check) -> None:
        def run(check: Check) -> Iterator[Fields]:
            yield {"ms": 1.0}
            raise RuntimeError("no kernel\nfor this")

        lines = started()
        take(Stage("head", 1, {"model": "m"}, run), check, lines, 60)
        found = [{k: v for k, v in line.items() if k != "at"} for line in lines.said]
        assert found == [
            {"stage": "head", "model": "m", "ms": 1.0},
            {"stage": "head", "model": "m", "error": "RuntimeError: no kernel for this"},
        ]
        assert fault(lines.said) and "head m: RuntimeError: no kernel for this" in summary(lines.said)

    def test_memory_that_is_too_small_is_an_answer(self, check: Check) -> None:
        def run(check: Check) -> Iterator[Fields]:
            raise torch.OutOfMemoryError("of a GPU")
            yield {}

        lines = started()
        about = {"model": "m", "who": "padded", "memory": "none", "precision": "bfloat16"}
        take(Stage("step", 1, about, run), check, lines, 60)
        assert lines.said[0]["out_of_memory"] is True and not fault(lines.said)
        assert "padded  none    bfloat16   out of memory" in summary(lines.said)

    def test_what_it_held_is_free_for_the_next(self, check: Check) -> None:
        def run(check: Check) -> Iterator[Fields]:
            held = torch.ones(1 << 20)
            raise torch.OutOfMemoryError(str(held.shape))
            yield {}

        def next_one(check: Check) -> Iterator[Fields]:
            yield {"held": check.device.held()}

        lines = started()
        with check.device as device:
            for stage in (run, next_one):
                take(Stage("step", 1, {}, stage), check, lines, 60)
            assert lines.said[-1]["held"] == 0 and device.peak() >= 1 << 22

    def test_a_device_that_is_broken_breaks_no_other_line(self, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(check.device, "free", broken)
        lines = started()
        for _ in range(2):
            take(Stage("head", 1, {}, machine.machine), check, lines, 60)
        assert [line["error"][:24] for line in lines.said] == ["RuntimeError: CUDA error"] * 2

    def test_with_too_little_time_it_is_not_begun(self, check: Check) -> None:
        def run(check: Check) -> Iterator[Fields]:
            raise AssertionError
            yield {}

        lines = started()
        take(Stage("step", 20, {"model": "m"}, run), check, lines, 10)
        assert lines.said[0]["skipped"] == "10 s are left, and it needs 20"
        assert "step m: skipped: 10 s are left" in summary(lines.said)

    def test_numbers_are_short_and_none_is_what_json_cannot_say(self) -> None:
        out = io.StringIO()
        Lines(time.perf_counter(), out).say(
            "peak", ms=1 / 3, of={"a": [float("nan"), 2e-9 / 3]}, ok=True, tokens=123456
        )
        line = json.loads(out.getvalue())
        del line["at"]
        assert line == {"stage": "peak", "ms": 0.3333, "of": {"a": [None, 6.667e-10]}, "ok": True, "tokens": 123456}

    def test_time_that_is_up_ends_the_process_whatever_it_is_in(self, tmp_path: Path) -> None:
        code = """
import sys, time
from pathlib import Path
from orpo_ray.doctor.gpu.lines import Lines
from orpo_ray.doctor.gpu.run import TimeLimit
path = Path(sys.argv[1])
with path.open("x") as file:
    lines = Lines(time.perf_counter(), file)
    with TimeLimit(lines, 0.2, path):
        lines.say("start", toy=True)
        time.sleep(100)
"""
        path = tmp_path / "lines.jsonl"
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["stage"] for line in lines] == ["start", "end"] and lines[-1]["complete"] is False
        assert str(path) in done.stdout

    def test_mistakes_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="torch sees no GPU here; --toy"):
            check_gpu(1, None, toy=False, start=time.perf_counter())
        (tmp_path / "lines").write_text("measured")
        with pytest.raises(UserError, match="lines cannot be written: File exists"):
            check_gpu(1, tmp_path / "lines", toy=True, start=time.perf_counter())
        assert (tmp_path / "lines").read_text() == "measured"


def test_a_fault_of_the_kernel_is_seen(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half precision alone, as a kernel's would be: values of the wrong head."""
    attention = AttentionInterface()[NAME]

    def faulty(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        value = value.roll(1, dims=1) if value.dtype == torch.bfloat16 else value
        return attention(module, query, key, value, mask, **options)

    AttentionInterface.register(NAME, faulty)
    try:
        found = list(parity.parity(check, TOY.families["opt"]))
    finally:
        AttentionInterface.register(NAME, attention)
    judged = {(line["way"], line["dtype"]): line["ok"] for line in found}
    assert judged["packed", "float32"] is True and judged["packed", "bfloat16"] is False
    assert fault(found)


def test_the_command_hands_on_what_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []

    def stand_in(*told: object, toy: bool, start: float) -> int:
        called.append((*told, toy))
        return len(called) - 1

    monkeypatch.setattr(run, "check_gpu", stand_in)
    out = tmp_path / "x"
    asked = [["--toy", "--seconds", "9", "--out", str(out)], []]
    codes = [CliRunner().invoke(app, ["doctor", "--gpu", *options]).exit_code for options in asked]
    assert called == [(9.0, out, True), (SECONDS, None, False)]
    assert codes == [0, 1], "a fault that is found is an exit code of 1"


@pytest.mark.parametrize("fault_of_kernel", ["", "top left", "window off by one", "keys rolled"])
def test_the_path_of_gpus_by_kernels_on_the_cpu(
    fault_of_kernel: varlen_cpu.Fault, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads and a window: what this check would have to find is found, and what is right is not."""
    varlen_cpu.pretend_cuda(monkeypatch)
    with varlen_cpu.faulty(fault_of_kernel):
        found = list(parity.parity(check, TOY.families["mistral-grouped-window"]))
    assert varlen_cpu.CALLS["flash_backward"] > 0
    half = [line for line in found if (line["way"], line["dtype"]) == ("packed", "bfloat16")]
    assert [line["ok"] for line in half] == [not fault_of_kernel]
    assert fault(found) == bool(fault_of_kernel)


def test_a_control_that_is_not_seen_is_a_fault(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_controls", lambda config: {"control: nothing": AttentionInterface()[NAME]})
    found = [line for line in parity.parity(check, TOY.families["opt"]) if line["way"] == "control: nothing"]
    assert [line["ok"] for line in found] == [False, False]


@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped-query", "mistral-window-shorter"])
def test_the_baseline_computes_orpo(name: str) -> None:
    network = build(FAMILIES[name], "sdpa")
    drawn = random_examples(seed=3, prompts=5, longest=20)
    examples = [example for example in drawn if len(example[0]) > 1]
    lengths = torch.tensor([[len(p) - 1, len(c), len(r)] for p, c, r in examples])
    sums = torch.stack([parity.plain_sums(network, example, CPU) for example in examples])
    expected = orpo(sums, lengths, totals(examples), lambda_=0.3)[0]
    torch.testing.assert_close(padded_loss(network, collate(examples, CPU), 0.3), expected)


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained() -> None:
    network = build(FAMILIES["llama-grouped-query"], "sdpa")
    ids = torch.arange(3, 12)[None]
    before = network(input_ids=ids).logits
    add_adapters(network, 2)
    assert torch.equal(network(input_ids=ids).logits, before)
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 7 * network.config.num_hidden_layers
    assert all(name.endswith(("down.weight", "up.weight")) for name in trained)


def test_tensors_are_counted_until_they_are_freed() -> None:
    with CountedTensors() as counted:
        a = torch.ones(1000)
        view = a[10:].view(-1)
        view.add_(1)
        b = a + a
        assert counted.held == 8000
        del a, b
        assert (counted.held, counted.peak) == (4000, 8000), "a view keeps its storage"
        del view
        assert counted.held == 0


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_probe_of_activations_lets_go_of_all_that_it_computed(name: str, rank: int | None) -> None:
    """Nothing of it may stay: of Mistral-7B it would be 0.4 GB."""
    with CountedTensors() as counted:
        network = build(FAMILIES[name], NAME)
        if rank is not None:
            add_adapters(network, rank)
        policy = PackedPolicy(network)
        gc.collect()
        before = counted.held
        assert activation_bytes(policy, 64)["none"] > 0
        gc.collect()
        assert counted.held == before


def test_lengths_are_those_of_the_data_that_people_train_on() -> None:
    examples = REAL.examples(0, 2000, 100)
    tokens = sum(len(ids) for example in examples for ids in example) / len(examples)
    assert 700 < tokens < 800
    longest = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in examples)
    assert longest <= min(model.config.max_position_embeddings for model in REAL.models)


def test_a_process_of_the_check_ends_with_it() -> None:
    """As when the time limit ends the check: the GPU is not to be held on."""
    ended, held = os.pipe()
    check = os.fork()
    if not check:
        if not os.fork():
            signal.alarm(20)
            end_with(os.getppid(), threading.Event())
        time.sleep(0.2)
        os._exit(0)
    os.close(held)
    os.waitpid(check, 0)
    assert select.select([ended], [], [], 5)[0] and os.read(ended, 1) == b""
    os.close(ended)


@pytest.mark.parametrize(("model", "weights", "each"), [(REAL.models[0], 1.3e9, 6), (REAL.models[1], 7.1e9, 4)])
def test_the_models_are_those_that_people_train(model: Model, weights: float, each: int) -> None:
    """By the FLOPs of a step: six for each weight and token, four where weights are frozen beneath adapters."""
    examples = REAL.examples(1, model.pairs, model.config.vocab_size)
    tokens = sum(len(ids) for example in examples for ids in example)
    assert steps._useful_flops(model, [examples]) == pytest.approx(each * weights * tokens, rel=0.1)


def test_a_gpu_by_what_torch_calls_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU is here, so what is asked of torch is at least what torch has, and what it gives is put right."""
    given = {
        "set_device": None, "synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None,
        "get_device_properties": SimpleNamespace(name="H100", multi_processor_count=132),
        "get_device_capability": (9, 0), "mem_get_info": (60 << 30, 80 << 30), "memory_allocated": 5,
        "max_memory_allocated": 7,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)  # raises where torch has none
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '570.1, 700.00 W, 1980 MHz'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    with Cuda() as device:
        assert device.about() == {
            "name": "H100", "capability": [9, 0], "processors": 132, "memory_gib": 80.0, "free_gib": 60.0,
            "driver_version": "570.1", "power.limit": "700.00 W", "clocks.max.sm": "1980 MHz",
        }  # fmt: skip
        device.start_peak()
        assert (device.held(), device.peak(), device.place) == (5, 7, torch.device("cuda:0"))
        assert device.profiled == [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        assert device.milliseconds(lambda: None) >= 0
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML' >&2\nexit 9\n")
    assert "driver_version" not in Cuda().about()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        torch.ones(2) + 1
    assert Cuda().microseconds(profile.key_averages()[0]) == 0
