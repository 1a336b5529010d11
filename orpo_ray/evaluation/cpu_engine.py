"""What vLLM's CPU backend does not compute: found out from a model's configuration, before an engine is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orpo_ray.modeling.loading import load_config

if TYPE_CHECKING:
    from orpo_ray.inference.models import EvaluatedModel

HEAD_DIMENSIONS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Those of `CPUAttentionBackend.get_supported_head_sizes`, vLLM 0.32: for others its first step fails."""


_STATE_SPACE = {"mamba", "linear_attention", "hybrid"}
"""What layers of Mamba are called among the layers of models that have them; some such models have none."""


def lacks_on_cpu(model: EvaluatedModel) -> str:
    """What of `model` vLLM has no kernel for on a CPU, in a few words; empty: nothing that is known."""
    config = load_config(model.settings).get_text_config()
    layers = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or _STATE_SPACE
    if any("mamba" in name for name in (config.model_type, *vars(config))) and _STATE_SPACE & {*layers}:
        return "state space layers (Mamba)"
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    dimensions = getattr(config, "head_dim", None) or (width // heads if width and heads else None)
    if dimensions is None or dimensions in HEAD_DIMENSIONS:
        return ""
    return f"attention heads of {dimensions} dimensions (of {', '.join(map(str, HEAD_DIMENSIONS))} it has)"
