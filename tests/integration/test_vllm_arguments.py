"""What vLLM is given on GPUs, held against the pinned vLLM's own signatures and rules: there is no GPU here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_models import opt, save

from orpo_ray.inference.models import find_policy
from orpo_ray.inference.scoring import pooling_arguments


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By `vllm_arguments_process.py`."""
    folder = tmp_path_factory.mktemp("model")
    save(folder, opt())
    model = find_policy("a", str(folder), folder)
    pooling = json.dumps([pooling_arguments(model, memory) for memory in (None, 0.45)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_arguments_process.py")), str(folder), pooling],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


def test_engines_arguments_are_those_that_it_has(found: dict[str, Any]) -> None:
    assert len(found["engines"]) == 6
    for name, engine in found["engines"].items():
        assert engine["unknown"] == [] and engine["given"] == engine["asked"], name
        on_gpu = "gpu_memory_utilization" in engine["asked"]
        assert on_gpu == (name != "on a CPU")
        assert (engine["of device"] == [None, None]) == on_gpu, "a GPU says how much it computes at once"
    asleep = [name for name, engine in found["engines"].items() if engine["asked"].get("enable_sleep_mode")]
    assert asleep == ["that sleeps"]


def test_several_gpus_have_an_executor_that_was_chosen(found: dict[str, Any]) -> None:
    """In a placement group vLLM would choose Ray's, which takes no bundle of several GPUs."""
    assert found["executors"] == {
        "several": {"by ray": False, "stages": True},
        "beside a scorer": {"by ray": True, "stages": True},
        "in stages": {"by ray": True, "stages": True},
    }
    staged = found["engines"]["in stages"]["given"]
    assert (staged["tensor_parallel_size"], staged["pipeline_parallel_size"]) == (8, 2)


def test_reward_models_have_their_share(found: dict[str, Any]) -> None:
    on_cpu, on_gpu = found["pooling"]
    for each in (on_cpu, on_gpu):
        assert each["unknown"] == [] and each["given"] == each["asked"] and each["given"]["runner"] == "pooling"
    assert on_cpu["given"]["enforce_eager"] and "enforce_eager" not in on_gpu["asked"]
    assert on_gpu["given"]["gpu_memory_utilization"] == 0.45


def test_text_is_made_while_it_is_drawn_where_stop_texts_need_it(found: dict[str, Any]) -> None:
    assert found["requests"] == [[False, [], [5], 7], [True, ["\n"], [5], 7]]


def test_an_h100_computes_1024_at_once(found: dict[str, Any]) -> None:
    """Of vLLM's own accord; twice as many requests are kept at work (`evaluation.pipeline`)."""
    assert found["at once"] == {"H100": 1024, "A100": 256, "L4": 256}
