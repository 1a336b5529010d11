"""Engines and scorers of rollouts that are lost between what they are asked, on a real cluster (issue 19)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data.prepare import prepare
from orpo_ray.data.questions import prompts_of
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import LiveOptions
from orpo_ray.inference.live_plain import LivePlain
from orpo_ray.inference.rewards import find_rewards
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.telemetry import logs
from orpo_ray.training import writers as writers_module
from orpo_ray.training.writers import Writers


def pid_of(actor: Any) -> int:
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def place_of(actor: Any) -> dict[str, Any]:
    """Whose its lines in the log are."""
    found: dict[str, Any] = ray.get(actor.__ray_call__.remote(lambda _: logs._place))
    return found


def kill(actor: Any) -> None:
    os.kill(pid_of(actor), signal.SIGKILL)


def settings(tmp_path: Path) -> TrainConfig:
    return parse_config(
        {
            "name": "run", "model": {"name_or_path": "toy", "dtype": "float32"}, "storage": {"path": str(tmp_path)},
            "data": {"train": "toy", "eval": "toy-test", "max_length": 96, "max_prompt_length": 64, "limit": 50},
            "objective": {"name": "rloo"}, "scaling": {"max_failures": 3},
            "rollouts": {
                "rewards": {"truth": "toy"}, "samples": 2, "max_tokens": 8, "engine": "transformers",
            },
        },
        [], "test",
    )  # fmt: skip


def test_lost_ones_are_begun_anew_wherever_they_are_lost(ray_cluster: None, tmp_path: Path) -> None:
    config = settings(tmp_path)
    assert config.rollouts is not None
    policy, tokenizer = load_policy(config.model, seed=0), load_tokenizer(config.model)
    notes: list[str] = []
    writers = Writers(
        config, policy.model, tokenizer, find_rewards(config.rollouts), torch.device("cpu"), 1, 1, 0.0, notes.append
    )
    held_out = prompts_of(prepare(config, tokenizer).eval)
    requests = [Request(i, 0, held_out.pair(i)[0].tolist(), 7 + i) for i in range(4)]
    weights = dict(policy.model.state_dict())
    moved = {name: weight * 1.5 for name, weight in weights.items()}

    def drawn(step: int) -> list[Any]:
        writers.load(weights if step == 0 else moved, step)
        samples = sorted(sample for found in writers.draw(requests) for sample in found)
        assert [sample.step for sample in samples] == [step] * 4
        return samples

    first, second = drawn(0), drawn(1)
    assert first != second and not notes
    scored = writers.score(held_out, np.arange(4), second)
    for actor, role in ((writers._engines[0], "engine"), (writers._scorer, "scorer")):
        assert place_of(actor) == {"run": "run", "trial": "", "role": role}
    kill(writers._engines[0])
    assert drawn(0) == first, "lost before it was given weights"
    kill(writers._engines[0])
    assert [sample.ids for found in writers.draw(requests) for sample in sorted(found)] == [one.ids for one in first]
    kill(writers._scorer)
    assert writers.score(held_out, np.arange(4), second) == scored
    assert [note.partition(" was lost and is begun anew")[0] for note in notes] == [
        "rollouts: an engine", "rollouts: an engine", "rollouts: a scorer",
    ]  # fmt: skip
    kill(writers._engines[0])
    with pytest.raises(UserError, match=r"^rollouts: 4 actors were lost \(scaling.max_failures=3\); the last, an en"):
        list(writers.draw(requests))
    (tmp_path / "run" / "samples.jsonl").mkdir()
    writers.show(0, held_out, np.arange(len(held_out)), first, scored)
    assert "samples.jsonl: the responses of step 0 are not kept" in notes[-1]


def test_engines_sleep_while_others_are_at_work(ray_cluster: None, tmp_path: Path) -> None:
    """As those do that take turns with the trainer on its GPU; who draws again is given the weights again."""
    config = settings(tmp_path)
    assert config.rollouts is not None
    policy, tokenizer = load_policy(config.model, seed=0), load_tokenizer(config.model)
    notes: list[str] = []
    rewards = find_rewards(config.rollouts)
    writers = Writers(config, policy.model, tokenizer, rewards, torch.device("cpu"), 1, 2, 0.0, notes.append)
    assert not writers._sleeps, "on a CPU nothing would be given back"
    writers._sleeps = True
    requests = [Request(i, 0, [0, 5, 9, 7], i) for i in range(4)]
    weights = dict(policy.model.state_dict())

    def drawn() -> dict[int, list[int]]:
        found = {sample.prompt: sample.ids for samples in writers.draw(requests) for sample in samples}
        asleep = [ray.get(each.__ray_call__.remote(lambda live: live._asleep)) for each in writers._engines if each]
        assert asleep and all(asleep)
        return found

    writers.load(weights, 0)
    first = drawn()
    assert drawn() == first, "by the same weights, which they had forgotten"
    writers.load({name: weight * 1.5 for name, weight in weights.items()}, 1)
    assert drawn() != first
    writers.load(weights, 2)
    kill(next(filter(None, writers._engines)))
    assert drawn() == first and len(notes) == 1, "one that is lost is begun, and sleeps, as the others do"
    assert list(writers.draw([])) == []


@pytest.mark.parametrize(
    ("device", "gpus", "override", "sleeps"),
    [("cuda:0", 0.0, {}, True), ("cuda:0", 0.0, {"sleep": False}, False), ("cuda:0", 0.5, {}, False),
     ("cuda:0", 1.0, {}, False), ("cpu", 0.0, {}, False)],
)  # fmt: skip
def test_who_sleeps(device: str, gpus: float, override: dict[str, Any], sleeps: bool, tmp_path: Path) -> None:
    """Who takes turns with the trainer on its GPU, unless asked not to."""
    config = settings(tmp_path)
    assert config.rollouts is not None
    config = config.model_copy(update={"rollouts": config.rollouts.model_copy(update=override)})
    policy, tokenizer = load_policy(config.model, seed=0), load_tokenizer(config.model)
    writers = Writers(config, policy.model, tokenizer, [], torch.device(device), 1, 1, gpus, str)
    assert writers._sleeps == sleeps


@pytest.mark.parametrize("failures", [2, 3])
def test_an_engine_that_cannot_begin_may_the_next_time(
    failures: int, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a GPU's memory is not free yet that the one before it had."""

    class Racing(LivePlain):
        def __init__(self, options: LiveOptions, run: str = "", trial: str = "") -> None:
            with (tmp_path / "tries").open("a+") as tries:
                tries.write("x")
                tries.seek(0)
                if len(tries.read()) <= failures:
                    raise ValueError("Free memory on device is less than desired GPU memory utilization")
            super().__init__(options, run, trial)

    config = settings(tmp_path).model_copy(update={"scaling": settings(tmp_path).scaling.model_copy(
        update={"max_failures": 2})})  # fmt: skip
    assert config.rollouts is not None
    monkeypatch.setattr(writers_module, "LivePlain", Racing)
    policy, tokenizer = load_policy(config.model, seed=0), load_tokenizer(config.model)
    notes: list[str] = []
    writers = Writers(
        config, policy.model, tokenizer, find_rewards(config.rollouts), torch.device("cpu"), 1, 1, 0.0, notes.append
    )
    writers.load(dict(policy.model.state_dict()), 0)
    asked = [Request(0, 0, [0, 5, 9], 1)]
    if failures == 2:
        assert [sample.prompt for found in writers.draw(asked) for sample in found] == [0]
    else:
        with pytest.raises(UserError, match=r"^rollouts: 3 actors were lost \(scaling.max_failures=2\)"):
            list(writers.draw(asked))
    why = "it cannot be started: ValueError: Free memory on device is less than desired GPU memory utilization"
    assert notes == 2 * [f"rollouts: an engine was lost and is begun anew: {why}"]
