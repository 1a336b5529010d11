"""Responses by the actor that an evaluation's pipeline feeds, and by one bare `LLM.generate`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orpo_ray.bench.stages.models import plan_evaluation, random_judge, random_policy
from orpo_ray.bench.stages.way import Way
from orpo_ray.cluster.connection import connect
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config.evaluation import SamplingConfig, ScoringConfig
from orpo_ray.config.evaluation_benchmark import GenerationBenchmarkConfig
from orpo_ray.evaluation.pipeline import AT_WORK
from orpo_ray.inference.generation import (
    ENVIRONMENT,
    EngineOptions,
    Generator,
    Request,
    load_engine,
    sampling_params,
)

_VLLMS_OWN_BATCH = 256


class Bare:
    """vLLM as it is, with the options of our engine: everything in one call."""

    def __init__(self, options: EngineOptions, sampling: SamplingConfig) -> None:
        use_assigned_cpus()  # as ours does: an actor's CPU, and not all of the machine's
        self._engine, self._options, self._sampling = load_engine(options, sampling.seed), options, sampling

    def generate(self, requests: list[Request]) -> int:
        """Returns the number of tokens drawn."""
        outputs = self._engine.generate(
            [{"prompt_token_ids": request.ids} for request in requests],
            [
                sampling_params(self._sampling, request.seed, self._options.stop_ids, self._options.top_tokens)
                for request in requests
            ],
            use_tqdm=False,
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)


@contextmanager
def generation(config: GenerationBenchmarkConfig, folder: Path) -> Iterator[dict[str, Way]]:
    policy = random_policy(config.policy, config.tokenizer, folder)
    judge = random_judge(config.policy, config.tokenizer, folder)  # that an evaluation has to have; it is not asked
    plan = plan_evaluation("generation", policy, judge, config.prompts, config.sampling, ScoringConfig(), folder)
    requests = [request for block in range(len(plan.blocks)) for request in plan.requests("policy", block)]
    work = plan.policies["policy"]
    options = EngineOptions(str(policy), work.model.generation_dtype, work.max_length)
    with beside_bare(requests, options, config.sampling, "tokens") as ways:
        yield ways


@contextmanager
def beside_bare(
    requests: list[Request], options: EngineOptions, sampling: SamplingConfig, makes: str
) -> Iterator[dict[str, Way]]:
    """An engine fed as `Pipeline` feeds it, and bare ones; an actor and a CPU each. `makes`: what tokens are called."""
    connect(cpus=3)  # of which one computes at a time
    import ray

    engines = ((Generator, options), (Bare, options), (Bare, replace(options, cpu_batch=_VLLMS_OWN_BATCH)))
    ours, bare, default = actors = [
        ray.remote(actor).options(num_cpus=1, runtime_env={"env_vars": ENVIRONMENT}).remote(settings, sampling)
        for actor, settings in engines
    ]

    def fed() -> int:
        todo, at_work, tokens = deque(requests), 0, 0
        while todo or at_work:
            new = [todo.popleft() for _ in range(min(AT_WORK - at_work, len(todo)))]
            responses = ray.get(ours.advance.remote(new))
            at_work += len(new) - len(responses)
            tokens += sum(response.tokens for response in responses)
        return tokens

    try:
        yield {
            "orpo_ray": Way(fed, makes),
            "LLM.generate": Way(lambda: ray.get(bare.generate.remote(requests)), makes),
            f"LLM.generate, {_VLLMS_OWN_BATCH} at once": Way(lambda: ray.get(default.generate.remote(requests)), makes),
        }
    finally:
        for actor in actors:
            ray.kill(actor)
