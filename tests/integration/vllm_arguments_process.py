"""vLLM's side of `test_vllm_arguments.py`: what it makes of the arguments that engines are given on GPUs. A process of
its own, since vLLM changes what transformers and the environment of a process hold."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

from vllm import LLM
from vllm.engine import arg_utils
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.executor import Executor

from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.inference.generation import EngineOptions, engine_arguments, sampling_params

ENGINES = {
    "a GPU": EngineOptions("", "bfloat16", 64, gpu_memory=0.65),
    "several": EngineOptions("", "bfloat16", 64, 4, 0.9),
    "beside a scorer": EngineOptions("", "float16", 64, 4, 0.65, workers_by_ray=True),
    "in stages": EngineOptions("", "bfloat16", 64, 8, 0.9, pipeline_parallel=2, workers_by_ray=True),
    "that sleeps": EngineOptions("", "bfloat16", 64, gpu_memory=0.4, sleeps=True),
    "on a CPU": EngineOptions("", "float32", 64),
}
LIVE = {"logprobs_mode": "processed_logprobs", "skip_tokenizer_init": True}
DEVICES = {"H100": ("NVIDIA H100 80GB HBM3", 79), "A100": ("NVIDIA A100-SXM4-80GB", 79), "L4": ("NVIDIA L4", 22)}


def taken(arguments: dict[str, Any]) -> dict[str, Any]:
    """What vLLM has of `arguments`, and which of them it does not know. Raises where `LLM` takes no such."""
    inspect.signature(LLM.__init__).bind(None, **arguments)
    found = EngineArgs(**arguments)
    of_device = [found.max_num_seqs, found.max_num_batched_tokens]
    given = {key: getattr(found, key) for key in arguments}
    unknown = sorted(arguments.keys() - {field.name for field in fields(EngineArgs)})
    return {"asked": arguments, "given": given, "unknown": unknown, "of device": of_device}


def executor(arguments: dict[str, Any]) -> dict[str, bool]:
    asked = SimpleNamespace(distributed_executor_backend=arguments["distributed_executor_backend"])
    found = Executor.get_class(SimpleNamespace(parallel_config=asked))  # type: ignore[arg-type]
    return {"by ray": found.uses_ray, "stages": found.supports_pp}


def at_once(name: str, gib: int) -> int:
    """Responses that vLLM computes at once on such a device, where it is told nothing."""
    arg_utils.current_platform = SimpleNamespace(
        get_device_total_memory=lambda: gib << 30, get_device_name=lambda: name,
        is_tpu=lambda: False, is_cpu=lambda: False,
    )  # fmt: skip
    return int(EngineArgs.get_batch_defaults(1)[1][UsageContext.LLM_CLASS])


def request(stop: tuple[str, ...]) -> list[Any]:
    found = sampling_params(SamplingConfig(stop=stop), 7, (5,), as_text=bool(stop))
    return [found.detokenize, found.stop, found.stop_token_ids, found.seed]


def main(folder: str, pooling: list[dict[str, Any]]) -> None:
    arguments = {
        name: engine_arguments(replace(options, model=folder), seed=3) | LIVE for name, options in ENGINES.items()
    }
    found = {
        "engines": {name: taken(each) for name, each in arguments.items()},
        "pooling": [taken(each) for each in pooling],
        "executors": {
            name: executor(each) for name, each in arguments.items() if "distributed_executor_backend" in each
        },
        "requests": [request(stop) for stop in ((), ("\n",))],
        "at once": {name: at_once(*device) for name, device in DEVICES.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
