"""Engines whose weights are those of a policy in training: token ids in, token ids and their log-probs out.

What an engine draws is drawn by the temperature alone, without top-p, top-k or penalties, and the log-probs that it
gives are those of that distribution, so they may stand in a ratio with the trainer's own. No text is made of tokens
here: decoded and encoded again it would often be other tokens.

An engine that takes turns with the trainer on its GPU can be put to sleep, and then holds next to nothing there: not
the weights either, since those of the next policy come in any case.

Left out: an engine over several GPUs, weights of an adapter apart from its base (see `modeling.lora.merged_weights`),
and loading while an engine draws, since a response would then be of two policies.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config import ModelConfig
from orpo_ray.errors import Diverged, UserError
from orpo_ray.inference.generation import Request
from orpo_ray.modeling.loading import load_tokenizer, some
from orpo_ray.telemetry.logs import log, log_as


class Sample(NamedTuple):
    """A response to a prompt: what was drawn."""

    prompt: int
    sample: int
    """Which of the responses to that prompt; the `round` of its request."""
    ids: list[int]
    """The token that ended it included; one that was cut has none."""
    logps: list[float]
    """Of each token, by the distribution that it was drawn from: after temperature."""
    ended: str
    """`stop`: by EOS or one of `stop_ids`; `length`: cut at `max_tokens`."""
    step: int = 0
    """Of the policy that drew it, as `load` was told."""


@dataclass(frozen=True)
class LiveOptions:
    """What an engine needs to start, and how it draws."""

    folder: str
    """Config, tokenizer, and the weights that it begins with, as those of step 0."""
    dtype: Literal["float32", "bfloat16"]
    """That it computes in; weights of another are rounded as they are loaded."""
    max_length: int
    """The longest prompt and response that will come, in tokens."""
    max_tokens: int
    """Of a response."""
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside the tokenizer's EOS."""
    gpu_memory: float | None = None
    """Share of the GPU's memory that vLLM takes; None on a CPU."""
    sleeps: bool = False
    """Whether it is put to sleep; a vLLM engine on a CPU goes on holding what it holds."""
    threads: int | None = None
    """On a CPU; None: as many as Ray has given it CPUs."""

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(name_or_path=self.folder, dtype=self.dtype)


class PackedTensor(NamedTuple):
    """A tensor as numpy has it, which knows no bfloat16."""

    dtype: str
    """torch's name of it."""
    array: np.ndarray
    """Of bfloat16 its bits, as int16."""


def pack_weights(weights: Mapping[str, Tensor]) -> dict[str, PackedTensor]:
    """A state dict as Ray's object store holds it without a copy for each process that reads it.

    On a CPU it shares its memory with `weights`, until it is put there. Tensors that are one, as tied ones are, are
    packed once.
    """
    packed: dict[str, PackedTensor] = {}
    known: dict[
        tuple[object, ...], tuple[str, Tensor]
    ] = {}  # tensors too: the place of one that is gone may be another's
    for name, weight in weights.items():
        place = (weight.device, weight.data_ptr(), weight.dtype, weight.shape, weight.stride())
        if place in known and weight.numel():
            packed[name] = packed[known[place][0]]
            continue
        known[place] = name, weight
        whole = weight.detach().cpu().contiguous()
        bits = whole.view(torch.int16) if whole.dtype == torch.bfloat16 else whole
        packed[name] = PackedTensor(str(weight.dtype).removeprefix("torch."), bits.numpy())
    return packed


def unpack_weights(packed: Mapping[str, PackedTensor]) -> dict[str, Tensor]:
    """The state dict that `pack_weights` packed, in the same memory: it must not be written to."""
    tensors: dict[int, Tensor] = {}
    for each in packed.values():
        if id(each.array) not in tensors:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
                tensors[id(each.array)] = torch.from_numpy(each.array).view(getattr(torch, each.dtype))
    return {name: tensors[id(each.array)] for name, each in packed.items()}


class Live(ABC):
    """What engines have in common: what they take in and what they refuse. A Ray actor's class."""

    def __init__(self, options: LiveOptions, run: str = "", trial: str = "") -> None:
        """`run`, and of a sweep `trial`, name its work in the log. Raises `UserError` where the folder holds no whole
        model in safetensors, or comes with code of its own."""
        if run:
            log_as(run=run, trial=trial, role="engine")
        started = time.monotonic()
        if options.threads is None:
            use_assigned_cpus()
        else:
            torch.set_num_threads(options.threads)
        self._options = options
        self._ends = frozenset({load_tokenizer(options.model).eos_token_id, *options.stop_ids})
        self._at_work: set[tuple[int, int]] = set()
        self._step = 0
        self._whole = True
        self._asleep = False
        self._network = self._start()
        """That has the names and shapes of the weights; its own may have no values."""
        log("engine started", seconds=round(time.monotonic() - started, 1))

    def load(self, weights: Mapping[str, PackedTensor], step: int) -> None:
        """Go on with `weights`, packed by `pack_weights`, of the policy at `step`: what was computed with others
        (the prefix cache) is forgotten.

        Names and shapes are those of the plain Hugging Face network; of tied weights one is enough. Raises `UserError`,
        and changes nothing, where one is missing, unknown, or of another shape, and while responses are at work.
        """
        if self._at_work:
            raise UserError(
                f"the weights of step {step} come while {len(self._at_work)} responses are at work, which would be of "
                "two policies; take them first"
            )
        fitting = fitting_weights(self._network, unpack_weights(weights), f"the weights of step {step}")
        self._whole = False  # until they are loaded
        self._replace(fitting)
        self._whole, self._asleep, self._step = True, False, step

    def sleep(self) -> None:
        """Give the device back what is held there, weights as well, until they are loaded again. Raises `UserError`,
        and changes nothing, while responses are at work."""
        if self._at_work:
            raise UserError(f"the engine is put to sleep while {len(self._at_work)} responses are at work")
        if not self._asleep:
            self._whole, self._asleep = False, True
            self._let_go()

    @abstractmethod
    def at_once(self) -> int:
        """How many responses it computes at once, at most."""

    def advance(self, requests: Sequence[Request]) -> list[Sample]:
        """Take in `requests` and work until some responses are there; returns those, in the order they ended.

        Returns an empty list only where nothing is at work. A request's seed, and nothing else that is asked for, says
        what it draws; its `round` becomes the `sample` of its response. Raises `UserError`, and takes in none, where a
        prompt and `max_tokens` are longer than `max_length`; also where what the policy computes is no number; and
        `ValueError` where one that is at work is asked for again.
        """
        if not self._whole:
            why = "the engine sleeps" if self._asleep else "the last weights were not loaded whole"
            raise RuntimeError(f"{why}, so nothing is drawn")
        room = self._options.max_length - self._options.max_tokens
        names = [(request.prompt, request.round) for request in requests]
        if len({*names, *self._at_work}) < len(names) + len(self._at_work):
            raise ValueError("a response is asked for twice at a time")
        for request in requests:
            if not 0 < len(request.ids) <= room:
                raise UserError(
                    f"prompt {request.prompt} has {len(request.ids)} tokens; the engine has room for 1 to {room}, and "
                    f"{self._options.max_tokens} of a response"
                )
        self._at_work.update(names)
        return [self._sample(*each) for each in self._drawn(requests)]

    def _sample(self, request: Request, ids: list[int], logps: list[float]) -> Sample:
        self._at_work.remove((request.prompt, request.round))
        if not all(map(math.isfinite, logps)):
            raise Diverged(f"the policy of step {self._step} gave a drawn token a log-prob that is no number")
        ended = "stop" if ids[-1] in self._ends else "length"
        return Sample(request.prompt, request.round, ids, logps, ended, self._step)

    @abstractmethod
    def _start(self) -> PreTrainedModel:
        """Start the engine; returns the network whose weights it takes."""

    @abstractmethod
    def _drawn(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        """Take in `requests`; of those that have ended, the tokens and their log-probs."""

    @abstractmethod
    def _replace(self, weights: dict[str, Tensor]) -> None:
        """Put `fitting_weights` in the place of those that it has, or, asleep, had."""

    @abstractmethod
    def _let_go(self) -> None:
        """Give back the memory of weights and cache."""


def fitting_weights(network: PreTrainedModel, weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`weights`, called `what` in errors, as `network` takes them: all that it has, of tied ones one, and no others.

    Raises `UserError` where they do not fit, or are two where the network has one that is tied.
    """
    expected: dict[str, Tensor] = network.state_dict(keep_vars=True)
    if unknown := weights.keys() - expected.keys():
        raise UserError(f"{what} are not of this model: it has no {some(unknown)}")
    names: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    fitting, missing = {}, set()
    for alike in names.values():
        # The one that files have: a tied one is left out of them.
        alike.sort(key=lambda name: name in network.all_tied_weights_keys)
        given = [name for name in alike if name in weights]
        if not given:
            missing.add(alike[0])
            continue
        first = weights[given[0]]
        for name in given:
            if (own := weights[name]).shape != expected[name].shape:
                shapes = f"{list(own.shape)}; this model's is {list(expected[name].shape)}"
                raise UserError(f"{what} hold {name} as {shapes}")
            if own is not first and not torch.allclose(own, first, rtol=0, atol=0, equal_nan=True):
                raise UserError(f"{what} hold {name} and {given[0]}, which this model ties, with other values")
        fitting[alike[0]] = first
    if missing:
        raise UserError(f"{what} are not whole: they lack {some(missing)}")
    return fitting
