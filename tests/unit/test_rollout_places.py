"""Who writes and scores for a policy in training: what they are sent, when it is their turn, what they may hold
(issue 19). There is no GPU here: what is asked of one is looked at."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_models import opt, save
from rollout_runs import InProcess, Trained, settings

from orpo_ray.cluster import turns
from orpo_ray.config import TrainConfig
from orpo_ray.inference import rewards
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.modeling.reward import StateDict
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training import rollout_setup, rollouts, writers
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.rollout_setup import Beside, Places
from orpo_ray.training.writers import scored_together

# Weights -------------------------------------------------------------------------------------------------------------


class Gathering(TorchEngine):
    """Whose weights are gathered, as under ZeRO-3."""

    gathered = 0

    def weights(self) -> StateDict | None:
        self.gathered += 1
        return {name: weight.clone() for name, weight in (super().weights() or {}).items()}


def test_weights_are_gathered_once_a_step_and_held_by_nobody_who_waits(tmp_path: Path) -> None:
    alive: list[bool] = []

    class Watching(InProcess):
        def load(self, weights: StateDict, step: int) -> str:
            self.sent = [weakref.ref(weight) for weight in weights.values()]
            return super().load(weights, step)

        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            gc.collect()
            alive.append(any(weight() is not None for weight in self.sent))
            return super().draw(requests)

    config = settings(tmp_path, "objective={name: grpo}", "rollouts.samples=2", "train.max_steps=4",
                      "train.eval_every_steps=2")  # fmt: skip
    trained = Trained(config, writers=Watching, engine=lambda policy: Gathering(policy, config.optim))
    assert len(alive) == 5 and not any(alive), "three evaluations and two rounds"
    assert isinstance(trained.engine, Gathering) and trained.engine.gathered == 3


# Scores --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=60))
def test_calls_of_a_scorer_are_bounded_by_responses(prompts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_SCORED_AT_ONCE", 6)
        patch.setattr(writers, "_PROMPTS_AT_ONCE", 3)
        calls = list(scored_together(prompts))
    assert sorted(place for call in calls for _, places in call for place in places) == list(range(len(prompts)))
    assert all(prompts[place] == prompt for call in calls for prompt, places in call for place in places)
    parts = Counter(prompt for call in calls for prompt, _ in call)
    for prompt, count in Counter(prompts).items():
        assert parts[prompt] == -(-count // 6), "together, where they are not too many"
    for call in calls:
        assert 0 < sum(len(places) for _, places in call) <= 6 and len(call) <= 3


def test_few_responses_to_a_prompt_are_scored_as_ever() -> None:
    """Rounding may tell how they were cut."""
    for samples in (1, 8):
        calls = list(scored_together([prompt for prompt in range(150) for _ in range(samples)]))
        assert [len(call) for call in calls] == [64, 64, 22]
    assert [sum(len(places) for _, places in call) for call in scored_together([0] * 1024)] == [512, 512]


# GPUs ----------------------------------------------------------------------------------------------------------------


def test_what_a_turn_leaves_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(rollouts, "let_go", lambda device: said.append(f"trainer on {device}"))
    monkeypatch.setattr(rewards, "let_go", lambda device: said.append(f"scorer on {device}"))

    class Told(InProcess):
        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            said.append("drawn")
            return super().draw(requests)

    Trained(settings(tmp_path, "train.max_steps=1"), writers=Told)
    assert said == 3 * ["trainer on cpu", "drawn", "scorer on cpu"]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("emptied"))
    said.clear()
    for device in ("cpu", "cuda:1"):
        turns.let_go(torch.device(device))
    assert said == ["emptied"]


def beside(config: TrainConfig, *, leads: bool = True, warn: Any = pytest.fail) -> Beside:
    cpu = torch.device("cpu")
    policy = load_policy(config.model, seed=config.seed)
    return Beside.of(config, policy, load_tokenizer(config.model), cpu, cpu, warn, leads=leads)


@pytest.mark.parametrize(
    ("places", "override", "visible", "share"),
    [
        (Places(1, 0.0), "rollouts.sleep=false", "0", 0.4),
        (Places(1, 0.0), "rollouts.gpu_memory=0.25 rollouts.sleep=false", "0", 0.25),
        (Places(3, 0.0), "rollouts.sleep=false", "0,1", 0.8),
        (Places(1, 0.0), "rollouts.engine=vllm", "0", 2 / 80),  # asleep
        (Places(3, 0.0), "rollouts.engine=vllm", "0,1", 4 / 80),
        (Places(1, 0.0), "rollouts.engine=transformers", "0", 0.0),
        (Places(2, 1.0), "rollouts.engine=vllm", "0", 0.0),
        (Places(1, 0.5), "rollouts.engine=vllm", "0", 0.0),
    ],
)
def test_memory_of_those_that_take_turns_on_the_trainers_gpu(
    places: Places, override: str, visible: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines take their share of all of it, and the scorer has its reward models there."""
    total = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total // 2, total))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    judged = f"rollouts.rewards={{r: {tmp_path / 'critic'}}}"
    config = settings(tmp_path, "rollouts.engine=vllm", *override.split(), judged)
    found = Beside(**{**vars(beside(config)), "places": places})
    scorer = sum(path.stat().st_size for path in (tmp_path / "critic").glob("*.safetensors"))
    bytes_ = found.memory(config, torch.device("cuda:0"))
    if places.gpus:
        assert bytes_ == 0
    else:
        assert 0 <= bytes_ - int(share * total) - scorer < 10**5, "and settings, which are small"
    assert found.memory(config, torch.device("cpu")) == 0


@pytest.mark.parametrize(
    ("visible", "assigned", "found"),
    [("2,3", ["5"], ["2", "3"]), (None, ["5"], ["5"]), (None, [], ["0"]), ("", ["5", "6"], ["5", "6"])],
)
def test_the_trainers_gpus_are_those_that_ray_has_given(
    visible: str | None, assigned: list[str], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing says which it sees, device 0 may be another run's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": assigned})
    monkeypatch.setattr(writers.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(writers.ray, "get_runtime_context", lambda: context)
    assert writers.visible_gpus() == found


# Hosts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "key"), [("critic", "objective.critic: "), ("policy", "model.name_or_path: ")])
def test_what_stands_beside_the_policy_is_compared_over_hosts(other: str, key: str, tmp_path: Path) -> None:
    """As the policy is: one that was trained further on one host would be in half of the numbers."""
    config = settings(tmp_path)
    here, again = beside(config).same, beside(config).same
    save(tmp_path / other, opt(), seed=9) if other == "policy" else _other_critic(tmp_path / other)
    there = beside(config).same
    assert len(here) == 2 and here == again and here.keys() == there.keys()
    assert [what for what in here if here[what] != there[what]] == [next(what for what in here if what.startswith(key))]


def _other_critic(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    save(folder, opt(), seed=9, kind=AutoModelForSequenceClassification)


def test_whole_digests_are_made_on_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path)
    leads = beside(config)
    assert leads.digests.keys() == {"rollouts.rewards.rule", "objective.reference"}
    for name in ("network_digest", "find_rewards"):
        monkeypatch.setattr(rollout_setup, name, lambda *given, **more: pytest.fail("of every byte"))
    other = beside(config, leads=False)
    assert other.digests == {} and other.same == leads.same


# The run's folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_model_that_engines_begin_with_goes(error: type[BaseException] | None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.model_to_draw_from.mkdir(parents=True)
    (folder.model_to_draw_from / "model.safetensors").touch()
    (folder.rollouts / "000000.jsonl").touch()
    with nullcontext() if error is None else pytest.raises(error), folder.without_model_to_draw_from():
        if error is not None:
            raise error
    assert [path.name for path in folder.rollouts.iterdir()] == ["000000.jsonl"]
