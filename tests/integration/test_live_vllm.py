"""A live vLLM engine draws by the weights that it was given last, and says with what probability."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from live_models import EOS, SHAPES, asked, network, options, save, worst
from live_process import LONG
from torch import Tensor
from transformers import GenerationConfig

from orpo_ray.config import LoraConfig, ModelConfig
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import ENVIRONMENT
from orpo_ray.inference.live import PackedTensor, Sample, pack_weights
from orpo_ray.inference.live_plain import LivePlain
from orpo_ray.inference.live_vllm import LiveVllm, logps_of
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import add_adapters, merged_weights
from orpo_ray.modeling.scorer import packed_scores

HERE = Path(__file__).parent
SYNCS = 3
JOBS: dict[str, dict[str, Any]] = {
    "mixtral": {"temperature": 1.3},  # first: vLLM makes groups for experts once in a process
    "opt tied": {"temperature": 1.0},
    "llama untied": {"temperature": 0.7},
    "opt of 350M": {"temperature": 1.0},
}
Drawn = dict[tuple[int, int], Sample]


def weights_of(name: str, step: int) -> dict[str, Tensor]:
    """Of the policy at `step`: drawn anew; at the last, in the tied OPT, merged from adapters on those of step 0."""
    if (name, step) != ("opt tied", SYNCS):
        return network(SHAPES[name], seed=step).state_dict()
    model = network(SHAPES[name], seed=0)
    add_adapters(model, LoraConfig(rank=2, alpha=4), seed=1)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_B." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return merged_weights(model, model.state_dict())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing by more, which wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every job: a real engine, in a process of its own."""
    jobs: dict[str, dict[str, Any]] = {}
    for name, own in JOBS.items():
        save(folder / name, SHAPES[name])
        # trl#6789: were these heard, every log-prob would be off by the mass that is cut.
        GenerationConfig(do_sample=True, top_k=2, top_p=0.5, temperature=0.3).save_pretrained(folder / name)
        jobs[name] = {
            "options": options(folder / name, max_length=LONG + 30, **own),
            "weights": [weights_of(name, step) for step in range(1, SYNCS + 1)],
            "more": name == "opt tied",
        }
    weights = [weights_of("opt tied", 1)]
    half = options(folder / "opt tied", max_length=LONG + 30, dtype="bfloat16")
    jobs["bfloat16"] = {"options": half, "weights": weights}
    kept = copy.deepcopy(SHAPES["opt tied"])
    kept.head_dtype = "float32"  # as `model.float32_logits` leaves it in a model's files
    save(folder / "float32 logits", kept)
    jobs["float32 logits"] = {
        "options": dataclasses.replace(half, folder=str(folder / "float32 logits")),
        "weights": [],
    }
    torch.save(jobs, folder / "jobs.pt")
    path = os.pathsep.join([*sys.path, str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "live_process.py"), str(folder)],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, Any]] = torch.load(folder / "results.pt", weights_only=False)
    return found


@pytest.mark.parametrize("name", JOBS)
def test_after_each_sync_its_log_probs_are_those_of_the_new_weights(
    name: str, results: dict[str, dict[str, Any]]
) -> None:
    """Of the same prompts each time, which the prefix cache knew by the weights before."""
    temperature, model = JOBS[name]["temperature"], network(SHAPES[name], seed=0)
    for step, drawn in enumerate(results[name]["drawn"]):
        if step:
            assert worst(model, drawn, temperature, asked(length=LONG)) > 0.1  # not the old ones
            model.load_state_dict(weights_of(name, step))
        assert worst(model, drawn, temperature, asked(length=LONG)) <= 1e-4
        assert temperature == 1.0 or worst(model, drawn, 1.0, asked(length=LONG)) > 0.01
        assert {sample.step for sample in drawn.values()} == {step}


@pytest.mark.parametrize("name", [name for name, own in JOBS.items() if own["temperature"] == 1.0])
def test_the_trainer_s_own_forward_agrees(name: str, results: dict[str, dict[str, Any]], folder: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path=str(folder / name), dtype="float32"), seed=0)
    prompts = {request.prompt: request.ids for request in asked(length=LONG)}
    for step, drawn in enumerate(results[name]["drawn"]):
        if step:
            policy.model.load_state_dict(weights_of(name, step))
        rows = [[ids, drawn[prompt, 0].ids, drawn[prompt, 1].ids] for prompt, ids in sorted(prompts.items())]
        for (prompt, _), scores in zip(sorted(prompts.items()), packed_scores(policy, rows, 4096), strict=True):
            for turn, score in enumerate(scores):
                sample = drawn[prompt, turn]
                assert score == pytest.approx(sum(sample.logps), abs=1e-4 * len(sample.ids))


def test_a_response_ends_with_its_end_or_is_cut_without_one(results: dict[str, dict[str, Any]]) -> None:
    """EOS is drawn like any token, and has its log-prob."""
    found: Drawn = results["opt tied"]["many"]
    assert {sample.ended for sample in found.values()} == {"stop", "length"}
    for sample in found.values():
        assert len(sample.ids) == len(sample.logps) and EOS not in sample.ids[:-1]
        assert (sample.ids[-1] == EOS) == (sample.ended == "stop")
        assert sample.ended == "stop" or len(sample.ids) == 12
        assert all(math.isfinite(logp) and logp <= 0 for logp in sample.logps)
    model = network(SHAPES["opt tied"], seed=0)
    model.load_state_dict(weights_of("opt tied", SYNCS))
    ended = {key: sample for key, sample in found.items() if sample.ended == "stop"}
    assert worst(model, ended, 1.0, [asked()[0]._replace(prompt=prompt) for prompt, _ in ended]) <= 1e-4


def test_what_is_drawn_follows_from_seed_and_weights_alone(results: dict[str, dict[str, Any]]) -> None:
    found = results["opt tied"]
    assert {key: sample.ids for key, sample in found["alone"].items()} == {
        key: sample.ids for key, sample in found["drawn"][-1].items()
    }
    again, first = found["after"], found["drawn"][1]  # by the same weights, others in between
    assert {key: sample.ids for key, sample in again.items()} == {key: sample.ids for key, sample in first.items()}


def test_weights_wait_until_responses_have_ended(results: dict[str, dict[str, Any]]) -> None:
    found = results["opt tied"]
    assert found["at work"] > 0
    assert found["while at work"].startswith(
        f"the weights of step 8 come while {found['at work']} responses are at work"
    )
    assert {sample.step for sample in found["after"].values()} == {8}


def test_an_engine_that_slept_draws_by_the_weights_that_wake_it(results: dict[str, dict[str, Any]]) -> None:
    """Room for weights, the weights, then room for the cache, as vLLM wants it after a sleep of level 2."""
    found = results["opt tied"]
    assert found["sleeping"] and found["refused"] == "the engine sleeps, so nothing is drawn"
    assert found["slept"] == found["after"]
    synced = [["collective_rpc", "reload_weights"]], [["reset_prefix_cache"]]
    assert found["calls"] == [
        ["sleep", "2"], ["wake_up", "weights"], *synced[0], ["wake_up", "kv_cache"], *synced[1],
        ["awake"], *synced[0], *synced[1],
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_and_changes_nothing(results: dict[str, dict[str, Any]]) -> None:
    found = results["opt tied"]
    assert found["missing"].startswith("the weights of step 9 are not whole: they lack model.decoder.")
    assert found["unknown"] == "the weights of step 9 are not of this model: it has no score"
    assert found["too long"].startswith("prompt 3 has 200 tokens; the engine has room for 1 to 168")
    assert found["unchanged"] == found["after"]
    assert found["no numbers"] == "the policy of step 10 gave a drawn token a log-prob that is no number"


def test_bfloat16_is_computed_and_loaded_from_float32(results: dict[str, dict[str, Any]]) -> None:
    for step, drawn in enumerate(results["bfloat16"]["drawn"]):
        exact = network(SHAPES["opt tied"], seed=step)
        assert 1e-4 < worst(exact, drawn, 1.0, asked(length=LONG)) <= 0.2


def test_logits_are_in_float32_where_the_models_files_say_so(results: dict[str, dict[str, Any]]) -> None:
    """Two tokens in one place differ by their logits alone: on the grid of bfloat16, or off it."""

    def off_grid(drawn: Drawn) -> float:
        places: dict[int, list[float]] = {}
        for (prompt, _), sample in sorted(drawn.items()):
            places.setdefault(prompt, []).append(sample.logps[0] * 2**14)
        return max(abs((a - b) - round(a - b)) for a, b in places.values())

    assert off_grid(results["bfloat16"]["drawn"][0]) < 0.05
    assert off_grid(results["float32 logits"]["drawn"][0]) > 0.1


def test_weights_lie_in_the_object_store_once(folder: Path, ray_cluster: None) -> None:
    """Each actor reads them where they are, and says in one line what does not fit."""
    import ray

    class Watched(LivePlain):
        def places(self, packed: dict[str, PackedTensor]) -> list[tuple[int, bool]]:
            return [(each.array.ctypes.data, each.array.flags.writeable) for each in packed.values()]

    save(folder / "opt tied", SHAPES["opt tied"])
    model = network(SHAPES["opt tied"], seed=1)
    weights = ray.put(pack_weights(model.state_dict()))
    asked_again = asked(length=LONG)
    actor = ray.remote(Watched).options(num_cpus=1).remote(options(folder / "opt tied", max_length=LONG + 30))
    try:
        places = ray.get(actor.places.remote(weights))
        assert not any(writeable for _, writeable in places)
        assert len({place for place, _ in places}) == len(places) - 1  # the tied one
        ray.get(actor.load.remote(weights, 1))
        found = ray.get(actor.advance.remote(asked_again))
        drawn = {(sample.prompt, sample.sample): sample for sample in found}
        assert worst(model, drawn, 1.0, asked_again) <= 1e-4
        with pytest.raises(UserError, match=r"the weights of step 2 are not whole"):
            ray.get(actor.load.remote({}, 2))
    finally:
        ray.kill(actor)


def test_a_temperature_that_vllm_would_raise_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^rollouts\.temperature is 0\.005, and vLLM draws at 0\.01 to 2$"):
        LiveVllm(options(folder / "opt tied", temperature=0.005))


def test_bug_log_prob_of_the_first_entry_instead_of_the_drawn_token() -> None:
    """NeMo-RL PR 3297: where the likeliest tokens are told too, the drawn one is not the first."""

    class Told(NamedTuple):
        logprob: float

    places = [{7: Told(-0.1), 3: Told(-2.5)}, {9: Told(-1.0)}, {4: Told(-3.0), 5: Told(-0.2)}]
    assert logps_of([3, 9, 4], places) == [-2.5, -1.0, -3.0]
