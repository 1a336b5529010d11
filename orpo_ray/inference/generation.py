"""Responses from one policy by vLLM: an engine that a Ray actor holds and keeps full."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.errors import UserError
from orpo_ray.inference.decoding import decoded
from orpo_ray.telemetry.logs import log, log_as

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from orpo_ray.inference.models import EvaluatedModel

# One process for the engine too: a small model then loads in seconds, not in half a minute. Threads stay where
# Ray put them, so that the actor keeps to the CPUs it asked for.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
BATCH_INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}
"""Besides, for an engine on GPUs that gives a request the same bits whatever it computes beside it. vLLM's modules read
it as they are imported."""
_HOPPER = (9, 0)  # the least compute capability that these kernels are for

SECONDS_BETWEEN_ANSWERS = 1.0
_TOKENS_IN_BATCH = 4096


class Request(NamedTuple):
    """One response that is wanted."""

    prompt: int
    round: int
    ids: list[int]
    """Token ids of the prompt, as in training."""
    seed: int
    category: str = ""
    """That sampling may have settings of its own for."""


class Response(NamedTuple):
    """One response; `text` continues the prompt, so it may begin with a space."""

    prompt: int
    round: int
    text: str
    tokens: int
    """The token that ended it included."""
    ended: str
    """`stop`: by EOS, the template's end of turn or a stop text; `length`: cut at `max_tokens`."""
    likely: tuple[tuple[str, float], ...] = ()
    """Texts and log-probs of the likeliest first tokens, where `EngineOptions.top_tokens` asks for them."""


@dataclass(frozen=True)
class EngineOptions:
    """How vLLM runs one policy."""

    model: str
    dtype: str
    """vLLM's own choice, `auto`, would compute a float32 model in bfloat16."""
    max_length: int
    """The longest prompt and response that will come, in tokens."""
    tensor_parallel: int = 1
    gpu_memory: float | None = None
    """Share of the memory of each of its GPUs; None on a CPU."""
    trust_remote_code: bool = False
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside EOS."""
    top_tokens: int = 0
    """How many of the likeliest first tokens are told with a response: of judges, whose labels are among them."""
    pipeline_parallel: int = 1
    """Parts of the model, of `tensor_parallel` GPUs each."""
    workers_by_ray: bool = False
    """Whether those of several GPUs are Ray actors in the placement group of this process; else they are processes that
    it starts."""
    sleeps: bool = False
    """Whether it can be put to sleep; on GPUs alone."""
    cpu_batch: int = 96
    """Responses computed at once on a CPU. With vLLM's own 256 it draws fewer tokens a second (1,300 for 1,540, 8M
    parameters), and the first responses, which scorers wait for, end later."""


def request_seed(seed: int, prompt: str, occurrence: int, round: int) -> int:
    """The seed of one response: equal wherever, by whomever and however often it is drawn, and for every model.

    `occurrence`: how often the same prompt came before, so that a repeated prompt is drawn anew.
    """
    content = f"{seed}:{occurrence}:{round}:{prompt}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def engine_arguments(options: EngineOptions, seed: int = 0) -> dict[str, Any]:
    """What vLLM's `LLM` is given for one policy; see `load_engine`. Of its arguments that are left out on a GPU the
    device decides: how many responses and tokens are computed at once."""
    # The model folder's own sampling defaults are not read: each request says how it is drawn. Without
    # `load_format` vLLM would take pickled weights where there are no others.
    arguments: dict[str, Any] = {
        "model": options.model, "dtype": options.dtype, "max_model_len": options.max_length, "seed": seed,
        "generation_config": "vllm", "tensor_parallel_size": options.tensor_parallel, "enable_prefix_caching": True,
        "trust_remote_code": options.trust_remote_code, "load_format": "safetensors",
    }  # fmt: skip
    if options.gpu_memory is None:
        # Eager, since compiling would take longer than all of a small model's responses; prompts whole, since vLLM
        # cannot rewind a CPU's seeded generator after a part of one ("does not use offset").
        longest = max(_TOKENS_IN_BATCH, options.max_length)
        batch = {"max_num_seqs": options.cpu_batch, "max_num_batched_tokens": longest}
        return arguments | {"enforce_eager": True, "enable_chunked_prefill": False, **batch}
    arguments["gpu_memory_utilization"] = options.gpu_memory
    if options.sleeps:
        arguments["enable_sleep_mode"] = True
    if options.tensor_parallel * options.pipeline_parallel > 1:
        arguments["pipeline_parallel_size"] = options.pipeline_parallel
        # Said in any case: of itself vLLM takes Ray's where its process stands in any placement group.
        arguments["distributed_executor_backend"] = "ray" if options.workers_by_ray else "mp"
    return arguments


def load_engine(options: EngineOptions, seed: int = 0, **more: Any) -> Any:
    """vLLM's `LLM` for one policy. `seed`: of what is drawn by requests without one. `more`: as `LLM` takes it. Raises
    `UserError` where this process was to be batch-invariant (see `BATCH_INVARIANT`), and its GPU cannot be."""
    from vllm import LLM

    require_batch_invariance()
    return LLM(**engine_arguments(options, seed), **more)


def require_batch_invariance() -> None:
    """Raises `UserError` where this process was to be batch-invariant (see `BATCH_INVARIANT`), and its GPU is none that
    vLLM has such kernels for."""
    from vllm import envs
    from vllm.platforms import current_platform as here

    if envs.VLLM_BATCH_INVARIANT and here.is_cuda() and (lack := lacks_batch_invariance(here.get_device_capability())):
        raise UserError(lack)


def lacks_batch_invariance(capability: tuple[int, int] | None) -> str:
    """Why vLLM on a GPU of this compute capability cannot be batch-invariant, in a line; empty: it can."""
    if capability is not None and tuple(capability) >= _HOPPER:
        return ""
    has = "an unknown one" if capability is None else ".".join(map(str, capability))
    return (
        "generation.deterministic, train.deterministic: vLLM's batch-invariant kernels are of compute capability "
        f"{'.'.join(map(str, _HOPPER))} (H100) and above, and this GPU's is {has}; leave it out"
    )


def sampling_params(
    sampling: SamplingConfig, seed: int, stop_ids: tuple[int, ...] = (), top_tokens: int = 0, *, as_text: bool = True
) -> Any:
    """vLLM's `SamplingParams` for one response. `as_text`: whether it is made text as it is drawn, token by token."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens,
        stop=list(sampling.stop) or None, stop_token_ids=list(stop_ids), seed=seed, detokenize=as_text,
        output_kind=RequestOutputKind.FINAL_ONLY, logprobs=top_tokens or None,
    )  # fmt: skip


class AtWork:
    """The requests that a vLLM engine works on. New ones join those at work, so that no batch waits for another to
    end."""

    def __init__(self, engine: Any, params: Callable[[Request], Any]) -> None:
        """`engine`: vLLM's `LLMEngine`; `params`: its `SamplingParams` for a request."""
        self._engine, self._params = engine, params
        self._waiting: dict[str, Request] = {}

    def advance(self, requests: Iterable[Request]) -> list[tuple[Request, Any]]:
        """Take in `requests` and work until some have ended; returns those, in that order, and vLLM's
        `CompletionOutput` of each. Returns an empty list only where nothing is at work."""
        for request in requests:
            name = f"{request.prompt}-{request.round}"
            self._waiting[name] = request
            self._engine.add_request(name, {"prompt_token_ids": request.ids}, self._params(request))
        finished: list[tuple[Request, Any]] = []
        deadline = time.monotonic() + SECONDS_BETWEEN_ANSWERS
        while self._waiting and (not finished or time.monotonic() < deadline):
            outputs = [output for output in self._engine.step() if output.finished]
            finished += [(self._waiting.pop(output.request_id), output.outputs[0]) for output in outputs]
        return finished


class Generator:
    """A vLLM engine with one policy."""

    def __init__(
        self, options: EngineOptions, sampling: SamplingConfig, run: str = "", policy: EvaluatedModel | None = None
    ) -> None:
        """`policy`: the model, whose files are then looked for on this node. `run` names its work in the log."""
        if policy is not None:
            log_as(run=run, role="generator", model=policy.label)
            from orpo_ray.inference.node_files import on_this_node  # here: it needs more than an engine does

            options = replace(options, model=str(on_this_node(policy).folder))
        started = time.monotonic()
        use_assigned_cpus()
        llm = load_engine(options, sampling.seed)
        self._top = options.top_tokens
        self._at_once: int = llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        # Stop texts are found, and likely tokens told, by vLLM's own text; a tokenizer in Python has another way.
        self._words: Tokenizer | None = None
        if not (sampling.stop or self._top):
            self._words = getattr(llm.get_tokenizer(), "backend_tokenizer", None)
        self._at_work = AtWork(
            llm.llm_engine,
            lambda request: sampling_params(
                sampling.of(request.category), request.seed, options.stop_ids, self._top, as_text=self._words is None
            ),
        )
        log("engine started", seconds=round(time.monotonic() - started, 1))

    def at_once(self) -> int:
        """How many responses it computes at once, at most."""
        return self._at_once

    def advance(self, requests: Iterable[Request]) -> list[Response]:
        """Take in `requests` and work until some responses are there; returns those, in the order they ended.

        Returns an empty list only where nothing is at work.
        """
        return [
            Response(
                request.prompt, request.round, self._text(request, drawn), len(drawn.token_ids),
                str(drawn.finish_reason), likeliest(drawn.logprobs, self._top),
            )
            for request, drawn in self._at_work.advance(requests)
        ]  # fmt: skip

    def _text(self, request: Request, drawn: Any) -> str:
        """Without the token that ended it, as vLLM's own."""
        if self._words is None:
            return str(drawn.text)
        ids = drawn.token_ids[:-1] if drawn.finish_reason == "stop" else drawn.token_ids
        return decoded(self._words, request.ids, ids)


def likeliest(places: Sequence[Mapping[int, Any]] | None, most: int) -> tuple[tuple[str, float], ...]:
    """Of the first place, as vLLM's own server tells them: the first `most`, with nothing below -9999."""
    first = places[0] if places else {}
    return tuple((str(each.decoded_token), max(each.logprob, -9999.0)) for each in islice(first.values(), most))
