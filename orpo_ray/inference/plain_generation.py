"""Responses by transformers' own `generate`, for models that vLLM does not compute: the same requests, more slowly.

Prompts of one length are computed together, so nothing is padded, and recurrent models are asked rightly. A token is
what the request's own seed draws at its place, whatever else is computed beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.inference.drawn import Decoder
from orpo_ray.inference.generation import SECONDS_BETWEEN_ANSWERS, Request, Response
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.node_files import on_this_node
from orpo_ray.modeling.loading import build_network, load_config, load_tokenizer, require_weights
from orpo_ray.telemetry.logs import log, log_as

AT_ONCE = 32
"""Responses that are computed together, at most."""


class PlainGenerator:
    """A network with one policy. What it is asked for waits until those before it have ended."""

    def __init__(
        self, policy: EvaluatedModel, sampling: SamplingConfig, stop_ids: tuple[int, ...] = (), run: str = ""
    ) -> None:
        """`stop_ids`: tokens that end a response, beside EOS. `run` names its work in the log."""
        if run:
            log_as(run=run, role="generator", model=policy.label)
        started = time.monotonic()
        policy = on_this_node(policy)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            keep_freed_memory()
            use_assigned_cpus()
        settings = policy.settings
        network, missing = build_network(AutoModelForCausalLM, load_config(settings), settings, seed=0)
        require_weights(policy.name, missing)
        network.generation_config = GenerationConfig()  # `sampling` is what the evaluation says, and nothing else
        tokenizer = load_tokenizer(settings)
        self._network: Any = network.eval().to(device)
        self._words: Tokenizer = tokenizer.backend_tokenizer
        self._ends = frozenset({tokenizer.eos_token_id, *stop_ids})
        self._sampling = sampling
        self._waiting: list[Request] = []
        log("engine started", seconds=round(time.monotonic() - started, 1))

    def advance(self, requests: Iterable[Request]) -> list[Response]:
        """Take in `requests` and work until some responses are there; returns those. See `Generator.advance`."""
        self._waiting += requests
        finished: list[Response] = []
        deadline = time.monotonic() + SECONDS_BETWEEN_ANSWERS
        while self._waiting and (not finished or time.monotonic() < deadline):
            length = len(self._waiting[0].ids)
            taken = [request for request in self._waiting if len(request.ids) == length][:AT_ONCE]
            names = {(request.prompt, request.round) for request in taken}
            self._waiting = [each for each in self._waiting if (each.prompt, each.round) not in names]
            finished += self._answer(taken)
        return finished

    def _answer(self, requests: Sequence[Request]) -> list[Response]:
        """Responses to prompts of one length."""
        sampling = self._sampling
        drawn = [Drawn(request, self._words, self._ends, sampling.stop) for request in requests]
        ids = torch.tensor([request.ids for request in requests], device=self._network.device)
        processors: list[LogitsProcessor] = []
        if sampling.temperature > 0:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            processors += [TopPLogitsWarper(float(sampling.top_p))] if sampling.top_p < 1 else []
            processors.append(DrawnBySeed([request.seed for request in requests]))
        with torch.inference_mode():
            self._network.generate(
                ids, attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_tokens, do_sample=False, use_cache=True, pad_token_id=min(self._ends)
                ),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([AllEnded(drawn)]),
            )  # fmt: skip
        return [each.response() for each in drawn]


class DrawnBySeed(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row's scores the one token that the row's own seed draws, by inversion: a number in [0, 1) for
    each place. So what is drawn depends neither on the other rows nor on how many there are."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`: `(rows, vocabulary)`; returns 0 at the token and -inf elsewhere."""
        numbers = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in self._generators])
        below = scores.double().softmax(-1).cumsum(-1)
        token = torch.searchsorted(below, numbers.to(below.device) * below[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class Drawn:
    """A response in the making: its text, and whether it has ended."""

    def __init__(self, request: Request, words: Tokenizer, ends: frozenset[int], stop: Sequence[str]) -> None:
        self._request, self._ends, self._stop = request, ends, stop
        self._decoder = Decoder(words, request.ids)
        self._text, self._tokens = "", 0
        self.ended = False

    def take(self, token: int) -> None:
        """The next token; nothing where it has ended."""
        if self.ended:
            return
        self._tokens += 1
        self.ended = token in self._ends
        if not self.ended:
            self._text += self._decoder.take(token)
            cuts = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
            if cuts:
                self._text, self.ended = self._text[: min(cuts)], True

    def response(self) -> Response:
        ended = "stop" if self.ended else "length"
        return Response(self._request.prompt, self._request.round, self._text, self._tokens, ended)


class AllEnded(StoppingCriteria):  # type: ignore[misc]
    """Hands each row's newest token to its response."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        self._drawn = drawn

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Which rows have ended: `(rows,)`."""
        for each, token in zip(self._drawn, input_ids[:, -1].tolist(), strict=True):
            each.take(token)
        return torch.tensor([each.ended for each in self._drawn], device=input_ids.device)
