"""Runs on rollouts in one plain process: the loop's own source, with an engine and a scorer of its own and no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_models import opt, save
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.dataset import Prompts
from orpo_ray.data.prepare import prepare
from orpo_ray.data.questions import prompts_of
from orpo_ray.data.templates import Renderer
from orpo_ray.inference.drawn import answer_of
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import LiveOptions, Sample, pack_weights
from orpo_ray.inference.live_plain import LivePlain
from orpo_ray.inference.rewards import Rewards, RewardSource, Scored
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import StateDict
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training.engine import Engine, TorchEngine
from orpo_ray.training.export import export_model
from orpo_ray.training.loop import Line, Sink, State, Wanted, run
from orpo_ray.training.rollout_files import RolloutFiles
from orpo_ray.training.rollout_setup import Beside
from orpo_ray.training.rollouts import RolloutSource
from orpo_ray.training.saving import Saver, load, load_carried

MAPPING: dict[str, Any] = {
    "name": "run",
    "model": {"dtype": "float32"},
    "data": {"max_length": 96, "max_prompt_length": 64},
    "objective": {"name": "ppo"},
    "rollouts": {"prompts": 8, "max_tokens": 12, "eval_prompts": 4, "engine": "transformers"},
    "optim": {"lr": 1e-3, "warmup_steps": 0, "schedule": "constant"},
    "train": {"global_batch_size": 4, "max_steps": 8, "eval_every_steps": 100, "checkpoint_every_steps": 3},
}  # fmt: skip
"""Rounds of 8 prompts and 8 steps with PPO's four passes."""
PROMPTS = 28

RULES = """
def even(prompts, responses):
    return [sum(map(ord, response)) % 7 for response in responses]


def some(prompts, responses):
    return [float("nan") if len(response) % 2 else len(response) for response in responses]


def huge(prompts, responses):
    return [1.0 if place % 3 else 1e308 for place in range(len(responses))]


def lots(prompts, responses):
    return [float(place) for place in range(len(responses))]


def none(prompts, responses):
    return [float("nan") for _ in responses]
"""
"""A network drawn at random says nothing true, so its responses are told apart by a rule."""


def settings(folder: Path, *overrides: str, network: PretrainedConfig | None = None, rule: str = "even") -> TrainConfig:
    """Of a run in `folder`, with prompts, rules, and what policy and critic start from: of the shape of `network`, two
    layers of OPT where none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("train", "toy"), ("eval", "toy-test")):
        prompts = [record["prompt"] for record in islice(toyworld.records(source), PROMPTS)]
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "rules.py").write_text(RULES)
    if not (folder / "policy").is_dir():
        shape = network or opt()
        save(folder / "policy", shape, seed=1)
        save(folder / "critic", shape, seed=2, kind=AutoModelForSequenceClassification)
    mapping = {
        **MAPPING,
        "storage": {"path": str(folder)},
        "model": {**MAPPING["model"], "name_or_path": str(folder / "policy")},
        "objective": {**MAPPING["objective"], "critic": str(folder / "critic")},
        "data": {**MAPPING["data"], **{name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}},
        "rollouts": {**MAPPING["rollouts"], "rewards": {"rule": f"{folder / 'rules.py'}:{rule}"}},
    }
    return parse_config(mapping, [*overrides], "test")


class InProcess:
    """As `training.writers.Writers`, with both in this process."""

    def __init__(self, config: TrainConfig, policy: PackedPolicy, rewards: Sequence[RewardSource]) -> None:
        self._config, self._policy = config, policy
        self.tokenizer = load_tokenizer(config.model)
        self.rewards = Rewards(rewards)
        self.engine: LivePlain | None = None
        self.said: list[str] = []
        self.note = self.said.append
        self.calls: list[list[Request]] = []
        """What was asked of the engine at a time."""
        self.step = -1

    def load(self, weights: StateDict, step: int) -> str:
        config, model, rollouts = self._config, self._policy.model, self._config.rollouts
        self.step = step
        assert rollouts is not None
        whole = merged_weights(model, weights)
        if self.engine is None:
            folder = config.run_dir / "rollouts" / "model"
            export_model(folder, model, dict(whole), self.tokenizer, config, {"step": 0}, None, "a test")
            longest, temperature = config.data.max_length, rollouts.temperature
            self.engine = LivePlain(LiveOptions(str(folder), "float32", longest, rollouts.max_tokens, temperature))
        self.engine.load(pack_weights({name: weight.clone() for name, weight in whole.items()}), step)
        return network_digest(model, whole)

    @property
    def drawn(self) -> list[Request]:
        """All that was asked of the engine."""
        return [request for call in self.calls for request in call]

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        assert self.engine is not None
        self.calls.append([*requests])
        found = self.engine.advance(requests)
        while found:
            yield found
            found = self.engine.advance([])

    def score(self, data: Prompts, records: NDArray[np.int64], samples: Sequence[Sample]) -> list[Scored]:
        renderer = Renderer(self.tokenizer, None)
        block = []
        for sample in samples:
            record = int(records[sample.prompt])
            question, asked = data.question(record), data.pair(record)[0].tolist()
            block.append((question, [answer_of(question, asked, sample.ids, sample.ended, renderer)]))
        return [one for [one] in self.rewards.score(block)]

    def show(
        self, step: int, data: Prompts, records: NDArray[np.int64], samples: Sequence[Sample], scored: Sequence[Scored]
    ) -> None:
        pass


class Trained:
    """A run of `config`, from its start or from the checkpoint of a step."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        begin: int = 0,
        engine: Callable[[PackedPolicy], Engine] | None = None,
        writers: Callable[[TrainConfig, PackedPolicy, Sequence[RewardSource]], InProcess] = InProcess,
        stop_after: int | None = None,
        changed: Callable[[Beside], object] = bool,
        sink: Callable[[Engine, Checkpoints, int | None], Saving] | None = None,
        oldest: Callable[[], int] = lambda: 0,
    ) -> None:
        """`changed`: what is done to the networks before an engine has them."""
        tokenizer, cpu = load_tokenizer(config.model), torch.device("cpu")
        start = load_policy(config.model, seed=config.seed)
        beside = Beside.of(config, start, tokenizer, cpu, cpu, pytest.fail, leads=True)
        changed(beside)
        policy = beside.policy
        self.engine = engine(policy) if engine else TorchEngine(policy, config.optim)
        self.checkpoints = Checkpoints(str(config.run_dir / "checkpoints"))
        state, carried = State(best_by=config.train.keep_by), {}
        self.notes: list[str] = []
        if begin:
            manifest = self.checkpoints.manifest(begin)
            assert manifest is not None
            load(self.engine, self.checkpoints, manifest)
            state, carried = State.from_json(manifest.state), load_carried(self.engine, self.checkpoints, manifest)
        data = prepare(config, tokenizer)
        self.writers = writers(config, policy, beside.rewards)
        self.source = RolloutSource(
            self.engine, config, prompts_of(data.train), prompts_of(data.eval), beside.reference,
            self.writers if self.engine.rank == 0 else None,  # type: ignore[arg-type]
            RolloutFiles(config.run_dir, self.notes.append), oldest, state.source, carried,
        )  # fmt: skip
        self.sink = (sink or Saving)(self.engine, self.checkpoints, stop_after)
        self.sink.source = self.source
        self.state = run(self.engine, config, self.source, self.sink, state)
        self.sink.saver.finish()

    @property
    def lines(self) -> list[Line]:
        return [line for line in self.sink.lines if "loss" in line]

    @property
    def rounds(self) -> list[Line]:
        """The first line of each."""
        return [line for line in self.lines if "round" in line]

    @property
    def evaluations(self) -> list[Line]:
        return [line for line in self.sink.lines if "loss" not in line]

    def weights(self) -> dict[str, bytes]:
        return {piece.name: piece.weight.numpy().tobytes() for piece in self.engine.pieces()}


class Saving(Sink):
    """Keeps lines, and checkpoints."""

    source: RolloutSource

    def __init__(self, engine: Engine, checkpoints: Checkpoints, stop_after: int | None) -> None:
        self.saver = Saver(checkpoints, engine, newest=99, best=0, warn=pytest.fail)
        self.lines: list[Line] = []
        self._stop_after = stop_after

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        manifest = Manifest(state.step, asdict(state), engine.updates, "", "", None, {})
        self.saver.begin(manifest, self.source.carried(state.step))

    def signals(self) -> dict[str, float]:
        return self.saver.signals()

    def heard(self, signals: dict[str, float]) -> Wanted:
        self.saver.heard(signals)
        steps = sum("loss" in line for line in self.lines)
        return Wanted.LAST_CHECKPOINT if steps == self._stop_after else Wanted.NOTHING
