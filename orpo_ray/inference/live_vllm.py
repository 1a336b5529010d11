"""A live engine by vLLM.

vLLM's own `reload_weights` maps names and cuts weights into what its layers hold. On CPUs its layers compute with
packed copies, of which it leaves two as they were: that of a tied output layer, which no weight is loaded into, and
those of experts, which it packs once and never again. Both are made anew here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from orpo_ray.config.rollouts import VLLM_TEMPERATURES
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import AtWork, EngineOptions, Request, load_engine
from orpo_ray.inference.live import Live, LiveOptions
from orpo_ray.modeling.loading import load_config


class LiveVllm(Live):
    """A vLLM engine, which lives in this process: it must have been started with `generation.ENVIRONMENT`."""

    def __init__(self, options: LiveOptions, run: str = "", trial: str = "") -> None:
        """Raises `UserError` as `Live` does, and where `temperature` is none that vLLM draws at."""
        least, most = VLLM_TEMPERATURES
        if not least <= options.temperature <= most:
            raise UserError(f"rollouts.temperature is {options.temperature:g}, and vLLM draws at {least:g} to {most:g}")
        super().__init__(options, run, trial)

    def _start(self) -> PreTrainedModel:
        options = self._options
        with torch.device("meta"):  # first: vLLM makes classes of transformers its own, where it has none for a model
            config = load_config(options.model)
            network: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        self._engine: Any = load_engine(
            EngineOptions(
                options.folder, options.dtype, options.max_length,
                gpu_memory=options.gpu_memory, sleeps=options.sleeps,
            ),
            logprobs_mode="processed_logprobs", skip_tokenizer_init=True,
        )  # fmt: skip
        self._working = AtWork(self._engine.llm_engine, self._params)
        return network

    def at_once(self) -> int:
        return int(self._engine.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # What ends a response is said here alone: vLLM's own EOS would take in those of generation_config.json.
        return SamplingParams(
            temperature=self._options.temperature, max_tokens=self._options.max_tokens, seed=request.seed,
            ignore_eos=True, stop_token_ids=sorted(self._ends), logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

    def _drawn(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        found: list[tuple[Request, list[int], list[float]]] = []
        for request, drawn in self._working.advance(requests):
            if drawn.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a response by {drawn.finish_reason!r}")
            ids = list(drawn.token_ids)
            found.append((request, ids, logps_of(ids, drawn.logprobs)))
        return found

    def _replace(self, weights: dict[str, Tensor]) -> None:
        if self._asleep:
            self._engine.wake_up(tags=["weights"])
        # By the names of a model's files, which vLLM's loaders read.
        of_files = revert_weight_conversion(self._network, weights)
        on_cpu = self._options.gpu_memory is None
        if on_cpu:
            self._engine.apply_model(_pack_experts_anew)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(of_files.items())})
        if on_cpu:
            self._engine.apply_model(_pack_heads_anew)
        if self._asleep:  # after the weights, beside which there may be copies on their way
            self._engine.wake_up(tags=["kv_cache"])
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not let go of what it had computed with other weights")

    def _let_go(self) -> None:
        self._engine.sleep(level=2)  # at level 1 it would keep the weights in the machine's memory


def logps_of(ids: Sequence[int], by_token: Sequence[Mapping[int, Any]]) -> list[float]:
    """Of each token that was drawn its own, from vLLM's `Logprob` of several tokens in its place: the first of them may
    be a likelier one's."""
    return [float(of[token].logprob) for token, of in zip(ids, by_token, strict=True)]


def _pack_experts_anew(model: nn.Module) -> None:
    """Have experts, once they are loaded, packed as at first: vLLM packs none whose kernel is there."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _pack_heads_anew(model: nn.Module) -> None:
    """Have output layers computed with the weight that they have now, be it their own or a tied one."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
