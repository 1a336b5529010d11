#!/usr/bin/env bash
# transformers 5.19.0 with torch 2.13.0 (CPU): an attention function that is registered with AttentionInterface is not
# told every model's sliding window. Mistral and Gemma 2 hand `sliding_window` to it; Qwen2-MoE and Phi-MoE do not, and
# tell their window to the mask alone, which whoever registers a mask function of his own (for packing, or because a
# kernel needs none) replaces. Such a function computes full attention for these models, without an error.
#
# Seen: "mistral: told 16", "gemma2: told 16", "qwen2_moe: told None, mask of 16", "phimoe: told None, mask of 16".
# Exits with 1 where that has changed. Needs Python 3.11 and 2 GB; takes a few minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'torch==2.13.0' 'transformers==5.19.0' 'numpy==2.3.5'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers import Gemma2Config, MistralConfig, PhimoeConfig, Qwen2MoeConfig

told, masks = set(), set()


def attention(module, query, key, value, attention_mask, **options):
    told.add(options.get("sliding_window"))
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None


def mask(*arguments, local_size=None, **options):
    masks.add(local_size)
    return None


AttentionInterface.register("mine", attention)
AttentionMaskInterface.register("mine", mask)
shape = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, sliding_window=16, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
experts = dict(moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=2, num_experts_per_tok=2)
configs = {
    "mistral": MistralConfig(**shape),
    "gemma2": Gemma2Config(**shape, head_dim=8),
    "qwen2_moe": Qwen2MoeConfig(**shape, **experts, use_sliding_window=True, max_window_layers=1),
    "phimoe": PhimoeConfig(**shape, num_local_experts=2),
}
print("transformers", transformers.__version__, "torch", torch.__version__)
found = {}
for name, config in configs.items():
    told.clear(), masks.clear()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="mine").eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 43)[None], use_cache=False)
    found[name] = 16 in told, 16 in masks
    window = 16 if found[name][0] else None
    print(f"{name}: told {window}" + ("" if found[name][0] else f", mask of {16 if found[name][1] else None}"))
expected = {"mistral": True, "gemma2": True, "qwen2_moe": False, "phimoe": False}
sys.exit({name: told for name, (told, _) in found.items()} != expected or not all(mask for _, mask in found.values()))
PYTHON
