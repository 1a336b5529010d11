"""A tiny model of every causal architecture that transformers has, made by shrinking its own default configuration."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 131
NAMES = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES)

# By what a setting is called: what it becomes. Widths are multiples of the heads' number.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim", "embedding_size", "num_channels",
         "hidden_dim", "mamba_d_ssm", "lru_width", "attention_hidden_size", "dim_model", "embedding_dim"), 32),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "attention_heads", "decoder_num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "d_kv", "swa_head_dim", "v_head_dim",
                     "qk_nope_head_dim", "global_head_dim", "index_head_dim", "dim_head"), 8),
    **dict.fromkeys(("qk_rope_head_dim",), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim",
         "shared_expert_intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp",
         "shared_intermediate_size", "dense_intermediate_size", "inner_dim", "dff", "dim_ff",
         "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
                     "num_decoder_layers", "num_encoder_layers"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length",
                     "max_target_positions", "original_max_position_embeddings"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    "sliding_window": 30, "attention_chunk_size": 30, "hidden_size_per_layer_input": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_state": 8, "mamba_n_groups": 1}
_CONV = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
_DECODER = {"is_decoder": True}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 30},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2": _CONV,
    "lfm2_moe": {**_CONV, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 30},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba2": {"attention_head_dim": 16, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_expand": 2, "mamba_d_state": 8,
               "mamba_ngroups": 1},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
         "prophetnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
         "xlm-roberta-xl"), _DECODER),
    "xmod": {**_DECODER, "default_language": "en_XX"},
}  # fmt: skip
"""What an architecture needs beside that, or to have each kind of layer that it is known for."""


QUICK = (
    "bert", "bloom", "cohere", "cohere2", "doge", "falcon", "gemma2", "gemma3", "gpt2", "gpt_oss", "granite", "jetmoe",
    "lfm2", "lfm2_moe", "llama", "llama4", "mamba", "minimax", "mistral", "modernbert-decoder", "olmo2", "opt", "phi3",
    "phimoe", "qwen2_moe", "qwen3_5", "qwen3_next", "stablelm", "xlnet",
)  # fmt: skip
"""Those that people train most, and those that were once computed wrong without a word."""


def config_of(name: str) -> PretrainedConfig:
    """The architecture's default configuration, shrunk."""
    kind = CONFIG_MAPPING[name]
    given = _shrunk(kind()) | _OWN.get(name, {})
    return kind(**given)


def _shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Settings that make `config` small, as its class takes them."""
    found: dict[str, Any] = {}
    layers = next((_SMALL[key] for key in vars(config) if key.endswith("layers") and key in _SMALL), 4)
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            found[key] = _shrunk(value)
        elif key == "head_dim" and hasattr(config, "qk_rope_head_dim"):
            found[key] = _SMALL["qk_rope_head_dim"]
        elif key == "num_key_value_heads" and hasattr(config, "kv_lora_rank"):
            found[key] = _SMALL["num_attention_heads"]
        elif key in _SMALL and value is not None and not isinstance(value, list | dict):
            found[key] = _SMALL[key]
        elif isinstance(value, list) and len(value) > layers and key.startswith(("layer_types", "layers_block_type")):
            found[key] = _every_kind(value, layers)
    return found


def _every_kind(kinds: list[Any], number: int) -> list[Any]:
    """`number` of layers' kinds, each that there is at least once."""
    every = list(dict.fromkeys(kinds))[:number]
    return [*every, *kinds[: number - len(every)]]


def build(config: PretrainedConfig) -> PreTrainedModel:
    """With weights drawn large enough that attention and positions matter, dropout off."""
    torch.manual_seed(0)
    for key in list(vars(config)):
        if "dropout" in key or key.endswith("pdrop") or "jitter" in key:
            setattr(config, key, 0.0)
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()
