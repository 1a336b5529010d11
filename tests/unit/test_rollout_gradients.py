"""A step on rollouts against plain forwards of Hugging Face's own networks, text by text, in float64 (issue 19).

Nothing of the package computes what is expected here: log-probs are a softmax over a plain forward's logits, a value is
what a classifier says of the text so far, advantages are sums as their definition has them, and losses are written as
the papers do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_models import TOKENIZER, llama, opt
from rollout_runs import InProcess, Trained, settings
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from orpo_ray.config import TrainConfig
from orpo_ray.data.prepare import prepare
from orpo_ray.data.questions import prompts_of
from orpo_ray.inference.live import Sample
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.rollout_setup import Beside

LLAMA = llama(tie_word_embeddings=False)  # two heads share one of keys and values
WRONG = 0.4
"""Nats that an engine is wrong by, up and down in turn, where a case is of one."""


@dataclass(frozen=True)
class Case:
    objective: str
    settings: tuple[str, ...] = ()
    network: PretrainedConfig = field(default_factory=opt)
    rule: str = "even"
    wrong: bool = False


_PPO = (
    "objective.gamma=0.95",
    "objective.gae_lambda=0.9",
    "objective.value_weight=0.7",
    "objective.kl_coefficient=0.3",
)
_WARM = ("rollouts.temperature=0.7", "rollouts.samples=3")
_CAP = "rollouts.importance_cap=1.2"
CASES = {
    "ppo": Case("ppo", _PPO),
    "ppo of three samples": Case("ppo", (*_PPO, *_WARM, "objective.value_clip=null"), LLAMA),
    "ppo of a wrong engine": Case("ppo", (*_PPO, _CAP, "objective.whiten_advantages=false"), LLAMA, wrong=True),
    "ppo a text at a time": Case("ppo", (*_PPO, *_WARM, "model.packing=off")),
    "ppo without some scores": Case("ppo", (*_PPO, "rollouts.prompts=8"), rule="some"),
    "rloo": Case("rloo", ("rollouts.samples=3",)),
    "rloo of a wrong engine": Case("rloo", (*_WARM, _CAP), LLAMA, wrong=True),
    "rloo without some scores": Case("rloo", ("rollouts.samples=5", "rollouts.prompts=8"), LLAMA, "some"),
    "grpo": Case("grpo", _WARM),
    "grpo over tokens": Case("grpo", (*_WARM, "objective.token_mean=batch", "objective.scale_advantages=false"), LLAMA),
    "grpo a text at a time": Case("grpo", (*_WARM, _CAP, "model.packing=off"), LLAMA, wrong=True),
    "clipped and fined": Case("rloo", ("rollouts.samples=2", "rollouts.clip_scores=3", "rollouts.cut_penalty=1.5")),
}  # fmt: skip


class Watched(TorchEngine):
    """Keeps weights and gradient of each step, as wide as the network has them."""

    def __init__(self, policy: Any, config: TrainConfig) -> None:
        super().__init__(policy, config.optim)
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def arrived(self, parameter: Tensor, weight: Tensor) -> None:
        pass  # not into float32 yet

    def step(self, lr: float) -> Tensor:
        named = dict(self.policy.named_parameters())
        weights = {name: parameter.detach().clone() for name, parameter in named.items()}
        gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        self.seen.append((weights, gradients))
        for low, full in zip(self._low, self._full, strict=True):
            full.grad, low.grad = (None if low.grad is None else low.grad.float()), None
        return super().step(lr)


class Wrong(InProcess):
    def draw(self, requests: Any) -> Iterator[list[Sample]]:
        for found in super().draw(requests):
            yield [one._replace(logps=[p + WRONG * (-1) ** i for i, p in enumerate(one.logps)]) for one in found]


def _widen(beside: Beside) -> None:
    beside.policy.double()
    beside.reference.double()


@dataclass
class Told:
    """Of one response."""

    prompt: list[int]
    ids: list[int]
    score: float
    engine: Tensor
    old: Tensor
    kl: Tensor
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    weights: Tensor | None = None


class Dense:
    """Policy, reference and critic as Hugging Face loads them."""

    def __init__(self, config: TrainConfig) -> None:
        own: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "sdpa"}  # eager: a softmax in float32
        folder = config.model.name_or_path
        self.policy = AutoModelForCausalLM.from_pretrained(folder, **own).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(folder, **own).eval()
        critic = getattr(config.objective, "critic", None)
        self.critic = critic and AutoModelForSequenceClassification.from_pretrained(critic, **own).eval()
        assert config.rollouts is not None
        self.temperature = config.rollouts.temperature

    def load(self, weights: dict[str, Tensor]) -> None:
        for network, prefix in ((self.policy, "model."), (self.critic, "critic.model.")):
            if network is not None:
                named = dict(network.named_parameters())
                assert {prefix + name for name in named} == {name for name in weights if name.startswith(prefix)}
                for name, parameter in named.items():
                    parameter.data.copy_(weights[prefix + name])
                    parameter.grad = None

    def logps(self, network: Any, prompt: list[int], ids: list[int]) -> Tensor:
        logits = network(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        return (logits / self.temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]

    def values(self, prompt: list[int], ids: list[int]) -> Tensor:
        hidden = self.critic.base_model(input_ids=torch.tensor([prompt + ids])).last_hidden_state
        return self.critic.score(hidden)[0, len(prompt) - 1 : -1, 0]

    def gradients(self) -> dict[str, Tensor]:
        return {
            prefix + name: parameter.grad
            for network, prefix in ((self.policy, "model."), (self.critic, "critic.model."))
            if network is not None
            for name, parameter in network.named_parameters()
        }


def score(text: str, cut: bool, config: TrainConfig, rule: str) -> float:
    """Of a response; NaN where it has none."""
    found = float(sum(map(ord, text)) % 7) if rule == "even" else (math.nan if len(text) % 2 else float(len(text)))
    assert config.rollouts is not None
    if config.rollouts.clip_scores is not None:
        found = max(-config.rollouts.clip_scores, min(found, config.rollouts.clip_scores))
    return found - config.rollouts.cut_penalty * cut


def drawn(config: TrainConfig, number: int, places: list[int], rule: str) -> dict[int, list[Told]]:
    """What the run's file has of a round: by prompt of the round the responses that have a score."""
    prompts = prompts_of(prepare(config, TOKENIZER).train)
    rows = [json.loads(line) for line in (config.run_dir / "rollouts" / f"{number:06d}.jsonl").open()][1:]
    found: dict[int, list[Told]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt"], row["sample"])):
        asked = prompts.pair(places[row["prompt"]])[0].tolist()
        before, whole = (TOKENIZER.decode(ids, skip_special_tokens=True) for ids in (asked, asked + row["ids"]))
        text = whole[len(before) :]
        scored = score(text, row["ended"] == "length", config, rule)
        if not math.isnan(scored):
            engine = torch.tensor(row["logps"], dtype=torch.float64)
            nothing = torch.zeros(0)
            found.setdefault(row["prompt"], []).append(Told(asked, row["ids"], scored, engine, nothing, nothing))
    return found


def credit(config: TrainConfig, dense: Dense, round_: list[list[Told]]) -> None:
    """Old log-probs, values and advantages of a round, by the weights that `dense` has."""
    own: Any = config.objective
    rollouts = config.rollouts
    assert rollouts is not None
    everyone = [told for group in round_ for told in group]
    with torch.no_grad():
        for told in everyone:
            told.old = dense.logps(dense.policy, told.prompt, told.ids)
            told.kl = told.old - dense.logps(dense.reference, told.prompt, told.ids)
            told.weights = torch.ones_like(told.old)
            if rollouts.importance_cap is not None:
                ratio = (told.old - told.engine).exp()
                ratio = ratio.prod().expand_as(ratio) if own.name == "rloo" else ratio
                told.weights = ratio.clamp(max=rollouts.importance_cap)
            if own.name == "ppo":
                told.values = dense.values(told.prompt, told.ids)
                for at in (0, len(told.ids) - 1):
                    so_far = torch.tensor([told.prompt + told.ids[:at]])  # before that token is there
                    said = float(dense.critic(input_ids=so_far).logits)
                    assert float(told.values[at]) == pytest.approx(said, abs=1e-9)
    if own.name != "ppo":
        for group in round_:
            totals = [told.score - own.kl_coefficient * float(told.kl.sum()) for told in group]
            for i, told in enumerate(group):
                if own.name == "rloo":
                    others = totals[:i] + totals[i + 1 :]
                    advantage = totals[i] - sum(others) / len(others)
                else:
                    advantage = totals[i] - sum(totals) / len(totals)
                    if own.scale_advantages:
                        advantage /= float(np.std(totals, ddof=1)) + 1e-4
                told.advantages = torch.full_like(told.old, advantage)
        return
    for told in everyone:
        assert told.values is not None
        rewards = -own.kl_coefficient * told.kl
        rewards[-1] += told.score
        following = torch.cat([told.values[1:], torch.zeros(1)])
        errors = rewards + own.gamma * following - told.values
        told.advantages = torch.stack([
            sum((own.gamma * own.gae_lambda) ** (later - at) * errors[later] for later in range(at, len(errors)))
            for at in range(len(errors))
        ])  # fmt: skip
        told.returns = told.advantages + told.values
    if own.whiten_advantages:
        every = torch.cat([told.advantages for told in everyone])  # type: ignore[misc]
        for told in everyone:
            told.advantages = (told.advantages - every.mean()) / (every.var(correction=0) + 1e-8).sqrt()


def loss(config: TrainConfig, dense: Dense, step: list[Told]) -> tuple[Tensor, float]:
    """Of a step; and the share of its actions that the clip holds."""
    own: Any = config.objective
    tokens = sum(len(told.ids) for told in step)
    found, held, actions = torch.zeros((), dtype=torch.float64), 0, 0
    for told in step:
        assert told.advantages is not None and told.weights is not None
        ratio = (dense.logps(dense.policy, told.prompt, told.ids) - told.old).exp()
        advantages, weights = told.advantages, told.weights
        if own.name == "rloo":
            ratio, advantages, weights = ratio.prod()[None], advantages[:1], weights[:1]
        plain, clipped = ratio * advantages, ratio.clamp(1 - own.clip, 1 + own.clip) * advantages
        held, actions = held + int((clipped < plain).sum()), actions + len(ratio)
        of_actions = -weights * torch.minimum(plain, clipped)
        if own.name == "ppo":
            values = dense.values(told.prompt, told.ids)
            errors = (values - told.returns).square()
            if own.value_clip is not None:
                within = told.values + (values - told.values).clamp(-own.value_clip, own.value_clip)
                errors = torch.maximum(errors, (within - told.returns).square())
            of_actions = of_actions + own.value_weight * errors / 2
        if own.name == "rloo" or (own.name == "grpo" and own.token_mean == "response"):
            found = found + of_actions.mean() / len(step)
        else:
            found = found + of_actions.sum() / tokens
    return found, held / actions


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_plain_forwards(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    objective = () if case.objective == "ppo" else (f"objective={{name: {case.objective}}}",)
    lr = 1e-4 if case.objective == "rloo" else 5e-4  # ratios of whole responses leave the clip sooner
    config = settings(
        tmp_path, *objective, "rollouts.prompts=4", "rollouts.epochs=2", "train.global_batch_size=2",
        "train.tokens_per_microbatch=150", "train.max_steps=8", f"optim.lr={lr}", "rollouts.eval_prompts=1",
        *case.settings, network=case.network, rule=case.rule,
    )  # fmt: skip
    trained = Trained(
        config,
        engine=lambda policy: Watched(policy, config),
        writers=Wrong if case.wrong else InProcess,
        changed=_widen,
    )
    assert isinstance(trained.engine, Watched)
    schedule = trained.source.schedule
    dense = Dense(config)
    round_: list[list[Told]] = []
    steps: list[Any] = []
    clipped, sizes = [], []
    for at, ((weights, gradients), line) in enumerate(zip(trained.engine.seen, trained.lines, strict=True)):
        dense.load(weights)
        number, within = divmod(at, schedule.steps_per_round)
        if not within:
            by_prompt = drawn(config, number, schedule.indices(number).tolist(), case.rule)
            least = 1 if case.objective == "ppo" else 2
            round_ = [group for _, group in sorted(by_prompt.items()) if len(group) >= least]
            credit(config, dense, round_)
            steps = [*schedule.steps(number, len(round_))]
            kl = [float(told.kl.sum()) for group in round_ for told in group]
            assert line["kl"] == pytest.approx(np.mean(kl), abs=1e-10)
            assert (abs(line["kl"]) < 1e-10) == (number == 0)
            assert line["mismatch_max"] == pytest.approx(WRONG if case.wrong else 0, abs=1e-4)
        expected, held = loss(config, dense, [told for i in steps[within] for told in round_[i]])
        expected.backward()  # type: ignore[no-untyped-call]
        assert line["loss"] == pytest.approx(float(expected), rel=1e-6, abs=5e-6)
        assert line["clip_fraction"] == pytest.approx(held, abs=1e-6)
        clipped.append(held)
        wanted = dense.gradients()
        assert wanted.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        sizes.append(largest)
        for parameter, gradient in wanted.items():
            assert float((gradients[parameter] - gradient).abs().max()) <= 1e-6 * largest, (at, parameter)
    assert len(clipped) == config.train.max_steps
    assert clipped[0] == 0 < max(clipped) and min(clipped[2:4]) < 1, "some are clipped, and not all"
    assert np.median(sizes) > 1e-3
