"""Which models vLLM does not part among the GPUs of an engine: found out before one is started."""

from __future__ import annotations

from orpo_ray.errors import UserError
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.modeling.loading import load_config


def require_split(model: EvaluatedModel, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Raises `UserError` where the model's heads or layers cannot be dealt out: as vLLM 0.32 does
    (`ModelConfig.verify_with_parallel_config`, `QKVParallelLinear`, `get_pp_indices`)."""
    if tensor_parallel * pipeline_parallel == 1:
        return
    config = load_config(model.settings).get_text_config()
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    of_keys = getattr(config, "num_key_value_heads", None) or heads
    if heads and heads % tensor_parallel:
        _refuse(model, "tensor_parallel", tensor_parallel, f"divide its {heads} attention heads")
    if of_keys and max(of_keys, tensor_parallel) % min(of_keys, tensor_parallel):
        _refuse(model, "tensor_parallel", tensor_parallel, f"divide its {of_keys} key-value heads, or be a multiple")
    if layers and layers < pipeline_parallel:
        _refuse(model, "pipeline_parallel", pipeline_parallel, f"be at most its {layers} layers")


def _refuse(model: EvaluatedModel, key: str, number: int, rule: str) -> None:
    raise UserError(f"{model.key}: scaling.{key} ({number}) should {rule}: {model.name}")
