"""What vLLM is given on GPUs, held against the pinned vLLM's own signatures and rules: there is no GPU here."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from live_models import opt, save
from vllm import LLM
from vllm.engine import arg_utils
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.executor import Executor

from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.inference.generation import EngineOptions, engine_arguments, sampling_params
from orpo_ray.inference.models import EvaluatedModel, find_policy
from orpo_ray.inference.scoring import pooling_arguments

ENGINES = {
    "a GPU": EngineOptions("", "bfloat16", 64, gpu_memory=0.65),
    "several": EngineOptions("", "bfloat16", 64, 4, 0.9),
    "beside a scorer": EngineOptions("", "float16", 64, 4, 0.65, workers_by_ray=True),
    "in stages": EngineOptions("", "bfloat16", 64, 8, 0.9, pipeline_parallel=2, workers_by_ray=True),
    "that sleeps": EngineOptions("", "bfloat16", 64, gpu_memory=0.4, sleeps=True),
    "on a CPU": EngineOptions("", "float32", 64),
}
LIVE = {"logprobs_mode": "processed_logprobs", "skip_tokenizer_init": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    folder = tmp_path_factory.mktemp("model")
    save(folder, opt())
    return find_policy("a", str(folder), folder)


@pytest.mark.parametrize("name", ENGINES)
def test_vllms_arguments_are_those_that_it_has(name: str, model: EvaluatedModel) -> None:
    arguments = engine_arguments(replace(ENGINES[name], model=str(model.folder)), seed=3) | LIVE
    assert arguments.keys() <= {field.name for field in fields(EngineArgs)}
    inspect.signature(LLM.__init__).bind(None, **arguments)
    found = EngineArgs(**arguments)
    assert {key: getattr(found, key) for key in arguments} == arguments
    if ENGINES[name].gpu_memory is not None:  # the device says how much it computes at once
        assert found.max_num_seqs is None and found.max_num_batched_tokens is None and not found.enforce_eager


@pytest.mark.parametrize("name", ["several", "beside a scorer", "in stages"])
def test_the_executor_of_several_gpus_is_one_that_vllm_has(name: str) -> None:
    options = ENGINES[name]
    arguments = engine_arguments(options)
    backend = arguments["distributed_executor_backend"]
    parallel = SimpleNamespace(distributed_executor_backend=backend)
    found = Executor.get_class(SimpleNamespace(parallel_config=parallel))  # type: ignore[arg-type]
    assert found.uses_ray == options.workers_by_ray == (backend == "ray") and found.supports_pp
    assert arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"] in (4, 16)


def test_vllm_computes_1024_at_once_on_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own accord, where it is told nothing; what is kept at work is twice that (`Pipeline`)."""
    found = {}
    for name, gib in (("NVIDIA H100 80GB HBM3", 79), ("NVIDIA A100-SXM4-80GB", 79), ("NVIDIA L4", 22)):
        device = SimpleNamespace(
            get_device_total_memory=lambda gib=gib: gib << 30, get_device_name=lambda name=name: name,
            is_tpu=lambda: False, is_cpu=lambda: False,
        )  # fmt: skip
        monkeypatch.setattr(arg_utils, "current_platform", device)
        found[name.split()[1][:4]] = arg_utils.EngineArgs.get_batch_defaults(1)[1][UsageContext.LLM_CLASS]
    assert found == {"H100": 1024, "A100": 256, "L4": 256}


@pytest.mark.parametrize("gpu_memory", [None, 0.45])
def test_a_pooling_engine_has_its_share(gpu_memory: float | None, model: EvaluatedModel) -> None:
    found = EngineArgs(**pooling_arguments(model, gpu_memory))
    assert found.runner == "pooling" and found.enforce_eager == (gpu_memory is None)
    assert gpu_memory is None or found.gpu_memory_utilization == gpu_memory


@pytest.mark.parametrize(("stop", "as_text"), [((), False), (("\n",), True)])
def test_a_request_is_made_text_where_stop_texts_need_it(stop: tuple[str, ...], as_text: bool) -> None:
    found = sampling_params(SamplingConfig(stop=stop), 7, (5,), as_text=as_text)
    assert (found.detokenize, found.stop, found.stop_token_ids, found.seed) == (as_text, list(stop), [5], 7)
