"""Responses sampled from a model by vLLM, in a process of its own that Ray starts and ends."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.errors import UserError
from orpo_ray.training.cluster import connect

# One process for the engine too: a small model then loads in seconds, not in half a minute. Threads stay where
# Ray put them, so that the task keeps to the CPUs it asked for.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Sampling:
    """How to draw a response; temperature 0 takes the likeliest token each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Response:
    """One response; `token_ids` ends with EOS where `finish_reason` is `stop`, and is cut where it is `length`.

    `text` continues the prompt, so it may begin with a space.
    """

    text: str
    token_ids: list[int]
    finish_reason: str


def generate(
    model_dir: str | Path, prompts: list[list[int]], sampling: Sampling, *, dtype: str = "auto"
) -> list[Response]:
    """One response to each prompt, in order, from the Hugging Face model in `model_dir`.

    Prompts are token ids as in training, BOS included. What is drawn for a prompt depends on the seed, the
    prompt and how often the same prompt came before it, not on the others or their order. vLLM is imported
    only in the Ray task, whose process ends with it and gives its memory back. Connects to Ray where this
    process is not yet connected. Raises `UserError` where the folder holds no model.
    """
    if not (Path(model_dir) / "config.json").is_file():
        raise UserError(f"{model_dir}: holds no model (no config.json); give the model/ folder of a finished run")
    if not prompts:
        return []
    connect()
    import ray

    task = ray.remote(max_calls=1)(_generate).options(
        num_cpus=1,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    responses: list[Response] = ray.get(
        task.remote(str(Path(model_dir).resolve()), prompts, _seeds(prompts, sampling.seed), sampling, dtype)
    )
    return responses


def _seeds(prompts: list[list[int]], seed: int) -> list[int]:
    """A seed for each request, equal wherever the prompt stands in the list."""
    earlier: Counter[bytes] = Counter()
    seeds = []
    for prompt in prompts:
        content = np.asarray(prompt, dtype="<i8").tobytes()
        digest = hashlib.blake2b(content, key=f"{seed}:{earlier[content]}".encode(), digest_size=8).digest()
        seeds.append(int.from_bytes(digest, "little") >> 1)
        earlier[content] += 1
    return seeds


def _generate(
    model_dir: str, prompts: list[list[int]], seeds: list[int], sampling: Sampling, dtype: str
) -> list[Response]:
    """The Ray task: load the model, draw every response, and be gone."""
    from vllm import LLM, SamplingParams

    # Eager: compiling would take longer than all of a small model's responses. The model folder's own sampling
    # defaults are not read: `sampling` is what the run says.
    engine: Any = LLM(model=model_dir, dtype=dtype, enforce_eager=True, generation_config="vllm", seed=sampling.seed)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        [
            SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens, seed=seed
            )
            for seed in seeds
        ],
        use_tqdm=False,
    )
    completions = [output.outputs[0] for output in outputs]
    return [Response(c.text, list(c.token_ids), str(c.finish_reason)) for c in completions]
