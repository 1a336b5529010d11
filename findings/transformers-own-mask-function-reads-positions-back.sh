#!/usr/bin/env bash
# transformers 5.19.0 with torch 2.13.0 (CPU): whoever registers a mask function of his own (AttentionMaskInterface),
# be it one that makes no mask at all, has every forward without `attention_mask` wait for the device. Before the
# function is asked, transformers looks in `position_ids` for packed rows and reads the answer back, though the
# positions be those that the model has just counted itself, for which the answer is known; once for each kind of
# layer, so twice in models whose layers have a window by turns. On a GPU that is a host that waits in every step; on
# the meta device, where nothing can be read back, such a forward ends in an error. Not so where the attention
# function has no mask function beside it (there is no mask then), where a mask of ones is given, or where the forward
# has a cache.
#
# Seen, values read back in a forward: "llama, mask function: 1, a mask of ones: 0, a cache: 0, no mask function: 0",
# "gemma2, mask function: 2, a mask of ones: 0, a cache: 0, no mask function: 0", "llama, mask function, meta device:
# RuntimeError, a mask of ones: done". Exits with 1 where that has changed. Needs Python 3.11 and 1 GB; takes a few
# minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0+cpu' || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"${pip[@]}" 'transformers==5.19.0' 'numpy==2.3.5'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, Gemma2Config, LlamaConfig


class Reads(TorchDispatchMode):
    """Counts the values of tensors that Python asks for; each is a wait for the device."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return operator(*args, **(kwargs or {}))


def attention(module, query, key, value, attention_mask, **options):
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None


def no_mask(*arguments, **options):
    return None


AttentionInterface.register("with-mask-function", attention)
AttentionMaskInterface.register("with-mask-function", no_mask)
AttentionInterface.register("alone", attention)
shape = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
configs = {"llama": LlamaConfig(**shape), "gemma2": Gemma2Config(**shape, head_dim=8, sliding_window=16)}


def model_of(name, implementation):
    return AutoModelForCausalLM.from_config(configs[name], attn_implementation=implementation).eval()


def reads(model, device="cpu", ones=False, use_cache=False):
    ids = torch.arange(3, 43, device=device)[None]
    mask = torch.ones_like(ids) if ones else None
    with torch.no_grad(), Reads() as found:
        model(input_ids=ids, attention_mask=mask, use_cache=use_cache)
    return found.count


print("transformers", transformers.__version__, "torch", torch.__version__)
seen = []
for name in configs:
    model = model_of(name, "with-mask-function")
    found = reads(model), reads(model, ones=True), reads(model, use_cache=True), reads(model_of(name, "alone"))
    print(f"{name}, mask function: {found[0]}, a mask of ones: {found[1]}, a cache: {found[2]}, "
          f"no mask function: {found[3]}")
    seen.append(found)
model, ends = model_of("llama", "with-mask-function").to("meta"), []
for ones in (False, True):
    try:
        reads(model, device="meta", ones=ones)
        ends.append("done")
    except RuntimeError as error:
        ends.append("RuntimeError")
        print(error)
print(f"llama, mask function, meta device: {ends[0]}, a mask of ones: {ends[1]}")
sys.exit((seen, ends) != ([(1, 0, 0, 0), (2, 0, 0, 0)], ["RuntimeError", "done"]))
PYTHON
