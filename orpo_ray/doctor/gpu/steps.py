"""The stages `step` and `memory`: whole optimizer steps of large models, and what they take of the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.doctor.gpu.adapters import add_adapters
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.device import GIB
from orpo_ray.doctor.gpu.padded import collate, padded_loss
from orpo_ray.doctor.gpu.sizes import Example, Model, Way, build, totals
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.memory import activation_bytes, set_recomputation
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.orpo import orpo
from orpo_ray.training.engine import TorchEngine

_LAMBDA, _LR = 0.1, 1e-6
_ROUNDS, _WARM = 2, 2
_BATCHES = 4
"""Different ones, taken in turn."""
_SHOWN = 16
"""Operators of a profile."""


@dataclass(frozen=True)
class _Trainer:
    engine: TorchEngine
    losses: list[Callable[[], Tensor]]
    """Of each batch."""
    computing: Callable[[], AbstractContextManager[Any]]
    tokens: float
    """Of a batch, padding included."""

    @property
    def network(self) -> nn.Module:
        return self.engine.policy

    @property
    def trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def backward(self, number: int) -> None:
        with self.computing():
            loss = self.losses[number]()
        self.engine.backward(loss, last=True)

    def step(self, number: int) -> None:
        """Of the micro-batch of this number."""
        self.backward(number)
        self.engine.step(_LR)

    def round(self) -> None:
        """A step of each batch."""
        for number in range(len(self.losses)):
            self.step(number)


def stages(check: Check) -> Iterator[Stage]:
    for model in check.sizes.models:
        for way in model.ways:
            about = {"model": model.name, "lora_rank": model.rank, **way._asdict()}
            yield Stage("step", model.needs, about, partial(_steps, model=model, way=way))


def profiles(check: Check) -> Iterator[Stage]:
    for model in check.sizes.models:
        yield Stage("profile", model.needs, {"model": model.name}, partial(_profile, model=model))


def _steps(check: Check, model: Model, way: Way) -> Iterator[Fields]:
    device = check.device
    before = device.held()
    examples = _examples(check, model)
    trainer, activations = _trainer(check, model, way, examples)
    device.start_peak()
    for _ in range(_WARM):
        trainer.step(0)
    # Rounds of all batches, since their lengths differ.
    milliseconds = device.milliseconds(trainer.round, times=_ROUNDS, warm=0) / _BATCHES
    flops = _useful_flops(model, examples)
    rate = flops / (milliseconds / 1e3)
    yield {
        "pairs": model.pairs, "tokens": trainer.tokens, "ms": milliseconds,
        "pairs_per_s": 1e3 * model.pairs / milliseconds, "useful_tflop": flops / 1e12,
        "mfu": rate / check.peaks["bfloat16"] if "bfloat16" in check.peaks else None,
        "peak_gib": (device.peak() - before) / GIB,
    }  # fmt: skip
    predicted = _states(trainer)
    if activations is not None:
        predicted["activations"] = activations
    yield {
        "stage": "memory",
        "predicted_gib": {name: size / GIB for name, size in predicted.items()},
        "measured_gib": {name: size / GIB for name, size in _measured(check, trainer, before).items()},
    }


def _examples(check: Check, model: Model) -> list[list[Example]]:
    """Of each batch; that of most tokens is the first."""
    drawn = [check.sizes.examples(10 + number, model.pairs, model.config.vocab_size) for number in range(_BATCHES)]
    return sorted(drawn, key=lambda each: sum(len(ids) for example in each for ids in example), reverse=True)


def _trainer(check: Check, model: Model, way: Way, examples: list[list[Example]]) -> tuple[_Trainer, int | None]:
    """And the bytes of activations that are predicted for its first batch."""
    place = check.device.place
    dtype = torch.float32 if way.precision == "autocast" else torch.bfloat16
    network = build(model.config, NAME if way.who == "orpo_ray" else "sdpa", dtype, place).train()
    if model.rank is not None:
        add_adapters(network, model.rank)
    losses: list[Callable[[], Tensor]]
    activations = None
    scorer: Any = network
    if way.who == "orpo_ray":
        scorer = PackedPolicy(network)
        packed = [pack(each, score_prompts=True).to(place) for each in examples]
        tokens = float(np.mean([batch.tokens for batch in packed]))
        losses = [partial(_packed_loss, scorer, *both) for both in zip(packed, examples, strict=True)]
        activations = activation_bytes(scorer, packed[0].tokens)[cast(Any, way.memory)]
        set_recomputation(scorer, cast(Any, way.memory))
    else:
        if way.memory == "full":
            network.gradient_checkpointing_enable({"use_reentrant": False})
        padded = [collate(each, place) for each in examples]
        tokens = float(np.mean([batch.ids.numel() for batch in padded]))
        losses = [partial(padded_loss, network, batch, _LAMBDA) for batch in padded]
    # The fields of `config.OptimConfig` that the engine reads; that needs pydantic.
    optim = SimpleNamespace(lr=_LR, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, max_grad_norm=1.0)
    autocast = way.precision == "autocast"
    computing = partial(torch.autocast, place.type, torch.bfloat16) if autocast else nullcontext
    return _Trainer(TorchEngine(scorer, cast(Any, optim), place), losses, computing, tokens), activations


def _packed_loss(policy: PackedPolicy, batch: PackedBatch, examples: list[Example]) -> Tensor:
    lengths = batch.lengths.view(len(examples), -1)
    return orpo(policy(batch).view(lengths.shape), lengths, totals(examples), lambda_=_LAMBDA)[0]


def _useful_flops(model: Model, examples: list[list[Example]]) -> float:
    """Of a step, as `modeling.flops` counts them: no prompt twice, no padding, nothing computed again. So MFU compares
    the baseline by the same work."""
    network = build(model.config, NAME, torch.bfloat16, torch.device("meta"))
    if model.rank is not None:
        add_adapters(network, model.rank)
    count = StepFlops.of(PackedPolicy(network))
    return float(np.mean([count(pack(each, score_prompts=True)) for each in examples]))


def _states(trainer: _Trainer) -> dict[str, int]:
    """Bytes that a run holds beside activations, by docs/scaling.md: gradients add up in float32, and what is trained
    in half precision has a master copy."""
    trained = sum(weight.numel() for weight in trainer.trained)
    masters = sum(weight.numel() for weight in trainer.trained if weight.element_size() < 4)
    weights = sum(weight.nbytes for weight in trainer.network.parameters())
    return {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained + 4 * masters}


def _measured(check: Check, trainer: _Trainer, before: int) -> dict[str, int]:
    """Bytes: weights with the optimizer's states; what forward and backward hold beside them and gradients; and the
    most of a step of two micro-batches, the second of which finds gradients there. `before`: held without it, which it
    gives its batches up for."""
    device = check.device
    trainer.backward(0)
    device.free()
    with_gradients = device.held()
    device.start_peak()
    trainer.backward(0)
    activations = device.peak() - with_gradients
    trainer.engine.step(_LR)
    peak = device.peak()
    trainer.losses.clear()
    device.free()
    return {"states": device.held() - before, "activations": activations, "peak": peak - before}


def _profile(check: Check, model: Model) -> Iterator[Fields]:
    """Where the time of a step goes that computes nothing again."""
    device = check.device
    trainer, _ = _trainer(check, model, Way("orpo_ray", "none"), _examples(check, model)[:1])
    for _ in range(_WARM):
        trainer.step(0)
    with torch.profiler.profile(activities=device.profiled) as profile:
        trainer.step(0)
        device.wait()
    events = sorted(profile.key_averages(), key=device.microseconds, reverse=True)
    top = [{"name": e.key[:80], "ms": device.microseconds(e) / 1e3, "calls": e.count} for e in events[:_SHOWN]]
    yield {"ms": sum(map(device.microseconds, events)) / 1e3, "top": top}
