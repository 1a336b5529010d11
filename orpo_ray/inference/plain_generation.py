"""Responses by transformers' own `generate`, for models that vLLM does not compute: the same requests, more slowly.

Prompts of one length are computed together, so nothing is padded, and recurrent models are asked rightly. A token is
what the request's own seed draws at its place, whatever else is computed beside it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.cluster.gpu_memory import limit_memory
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config import ModelConfig
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.errors import UserError
from orpo_ray.inference.decoding import Decoder
from orpo_ray.inference.generation import SECONDS_BETWEEN_ANSWERS, Request, Response
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.node_files import on_this_node
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.loading import build_network, load_config, load_tokenizer, require_weights
from orpo_ray.telemetry.logs import log, log_as

AT_ONCE = 32
"""Responses that are computed together, at most."""


class PlainGenerator:
    """A network with one policy. What it is asked for waits until those before it have ended."""

    def __init__(
        self,
        policy: EvaluatedModel,
        sampling: SamplingConfig,
        stop_ids: tuple[int, ...] = (),
        run: str = "",
        gpu_memory: float | None = None,
    ) -> None:
        """`stop_ids`: tokens that end a response, beside EOS. `run` names its work in the log. `gpu_memory`: share of
        its GPU's memory that it may take; None on a CPU, or where nobody is beside it."""
        if run:
            log_as(run=run, role="generator", model=policy.label)
        started = time.monotonic()
        policy = on_this_node(policy)
        use_assigned_cpus()
        if gpu_memory is not None and torch.cuda.is_available():
            limit_memory(gpu_memory)
        self._network = load_network(policy.settings, policy.name)
        tokenizer = load_tokenizer(policy.settings)
        self._words: Tokenizer = tokenizer.backend_tokenizer
        self._eos: int | None = tokenizer.eos_token_id
        self._ends = frozenset({self._eos, *stop_ids})
        self._sampling = sampling
        self._waiting = Waiting(self._answer)
        log("engine started", seconds=round(time.monotonic() - started, 1))

    def asked_otherwise(self, sampling: SamplingConfig, stop_ids: tuple[int, ...]) -> PlainGenerator:
        """One with the same network."""
        other = copy.copy(self)
        other._ends = frozenset({self._eos, *stop_ids})
        other._sampling = sampling
        other._waiting = Waiting(other._answer)
        return other

    def at_once(self) -> int:
        """How many responses it computes at once, at most."""
        return AT_ONCE

    def advance(self, requests: Iterable[Request]) -> list[Response]:
        """Take in `requests` and work until some responses are there; returns those. See `Generator.advance`."""
        return self._waiting.advance(requests)

    def _answer(self, requests: Sequence[Request]) -> list[Response]:
        """Responses to prompts of one length and category."""
        sampling = self._sampling.of(requests[0].category)
        drawn = [Drawn(request, self._words, self._ends, sampling.stop) for request in requests]
        draw(self._network, requests, drawn, sampling.max_tokens, sampling.temperature, sampling.top_p)
        return [each.response() for each in drawn]


def load_network(settings: ModelConfig, name: str) -> PreTrainedModel:
    """The whole network that `settings` name, called `name` in errors, on the GPU if there is one, to be drawn from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    network, missing = build_network(AutoModelForCausalLM, load_config(settings), settings, seed=0)
    require_weights(name, missing)
    network.generation_config = GenerationConfig()  # what is asked for is drawn, whatever the folder says
    if getattr(network.config, "head_dtype", None) == "float32":
        network.set_output_embeddings(LogprobHead.of(network))
    network.eval().to(device)
    return network


T = TypeVar("T")


def _alike(request: Request) -> tuple[int, str]:
    """What requests share that are computed together."""
    return len(request.ids), request.category


class Waiting(Generic[T]):
    """Requests that wait until those before them have been answered, and are then with others that are alike."""

    def __init__(self, answer: Callable[[Sequence[Request]], list[T]]) -> None:
        """`answer`: gives a response to each of at most `AT_ONCE` prompts of one length and category."""
        self._answer = answer
        self._requests: list[Request] = []

    def advance(self, requests: Iterable[Request]) -> list[T]:
        """Take in `requests` and work until some responses are there; returns those."""
        self._requests += requests
        finished: list[T] = []
        deadline = time.monotonic() + SECONDS_BETWEEN_ANSWERS
        while self._requests and (not finished or time.monotonic() < deadline):
            alike = _alike(self._requests[0])
            taken = [request for request in self._requests if _alike(request) == alike][:AT_ONCE]
            names = {(request.prompt, request.round) for request in taken}
            self._requests = [each for each in self._requests if (each.prompt, each.round) not in names]
            finished += self._answer(taken)
        return finished


def draw(
    network: Any,
    requests: Sequence[Request],
    drawn: Sequence[Row],
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
) -> Tensor:
    """Have `network` answer `requests`, whose prompts are of one length, into `drawn`, one for each.

    Returns the log-probs `(rows, places)`, in float64, of what was drawn, by the distribution that it was drawn from
    (what stands behind a row's end is of no response); at temperature 0, where nothing is drawn, no places.
    """
    ids = torch.tensor([request.ids for request in requests], device=network.device)
    processors: list[LogitsProcessor] = []
    by_seed = DrawnBySeed([request.seed for request in requests])
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        processors += [TopPLogitsWarper(float(top_p))] if top_p < 1 else []
        processors.append(by_seed)
    with torch.inference_mode():
        network.generate(
            ids, attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=max_tokens, do_sample=False, use_cache=True, pad_token_id=0  # nothing is padded
            ),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([AllEnded(drawn)]),
        )  # fmt: skip
    return torch.stack(by_seed.logps, 1) if by_seed.logps else ids.new_empty((len(ids), 0), dtype=torch.float64)


class DrawnBySeed(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row's scores the one token that the row's own seed draws, by inversion: a number in [0, 1) for
    each place. So what is drawn depends neither on the other rows nor on how many there are."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logps: list[Tensor] = []
        """Of each place, the log-probs `(rows,)` of what was drawn, in float64."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`: `(rows, vocabulary)`; returns 0 at the token and -inf elsewhere."""
        numbers = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in self._generators])
        likely = scores.double().softmax(-1)
        below = likely.cumsum(-1)
        if not below[:, -1].isfinite().all():
            raise UserError("the model's logits are no numbers, so nothing can be drawn by them")
        token = torch.searchsorted(below, numbers.to(below.device) * below[:, -1:], right=True)
        self.logps.append(likely.gather(1, token)[:, 0].log())
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class Row:
    """A response in the making: its tokens, and whether it has ended."""

    def __init__(self, ends: frozenset[int]) -> None:
        """`ends`: tokens that end it."""
        self._ends = ends
        self.ids: list[int] = []
        """The one that ended it included."""
        self.ended = False

    def take(self, token: int) -> None:
        """The next token; nothing where it has ended."""
        if not self.ended:
            self.ids.append(token)
            self.ended = token in self._ends


class Drawn(Row):
    """A response as text."""

    def __init__(self, request: Request, words: Tokenizer, ends: frozenset[int], stop: Sequence[str]) -> None:
        super().__init__(ends)
        self._request, self._stop = request, stop
        self._decoder = Decoder(words, request.ids)
        self._text = ""

    def take(self, token: int) -> None:
        super().take(token)
        if not self.ended:
            self._text += self._decoder.take(token)
            cuts = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
            if cuts:
                self._text, self.ended = self._text[: min(cuts)], True

    def response(self) -> Response:
        ended = "stop" if self.ended else "length"
        return Response(self._request.prompt, self._request.round, self._text, len(self.ids), ended)


class AllEnded(StoppingCriteria):  # type: ignore[misc]
    """Hands each row's newest token to its response."""

    def __init__(self, drawn: Sequence[Row]) -> None:
        self._drawn = drawn

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Which rows have ended: `(rows,)`."""
        for each, token in zip(self._drawn, input_ids[:, -1].tolist(), strict=True):
            each.take(token)
        return torch.tensor([each.ended for each in self._drawn], device=input_ids.device)
