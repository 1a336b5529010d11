#!/usr/bin/env bash
# peft 0.21.2 with torch 2.13.0 (CPU): adapters of a bfloat16 network are bfloat16 (inject_adapter_in_model, and
# get_peft_model with autocast_adapter_dtype=False), but float32 where they come into being on the meta device. New
# adapters are float32, and the step that moves them to their layer's device and dtype passes over every layer that
# has an adapter on "meta", its other adapters included. So a network that is built and adapted within
# `torch.device("meta")`, to count its bytes before it is loaded, has adapters of twice the size; and a second adapter
# of a network that lies on "meta" stays where it was made, on the CPU, in float32 beside a first one in bfloat16 on
# "meta". A network moved to "meta" before its first adapter is right.
#
# Seen, adapters of one bfloat16 layer of 64 x 64, rank 4: "within cpu: bfloat16 on cpu, 1024 bytes", "within meta:
# float32 on meta, 2048 bytes", "moved to meta: bfloat16 on meta, 1024 bytes", "a second one on cpu: bfloat16 on cpu,
# 1024 bytes", "a second one on meta: float32 on cpu, 2048 bytes". Exits with 1 where that has changed. Needs Python
# 3.11 and 1 GB; takes a few minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0+cpu' || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"${pip[@]}" 'peft==0.21.2' 'transformers==5.19.0' 'accelerate==1.15.0' 'numpy==2.3.5'
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import peft
import torch
from peft import LoraConfig, inject_adapter_in_model


def network():
    return torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))


def adapted(model, name="default"):
    """dtype, device and bytes of the adapter that the model gets under a name."""
    model = inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), model, adapter_name=name)
    weights = [weight for key, weight in model.named_parameters() if f".{name}." in key]
    [kind] = {(str(weight.dtype).removeprefix("torch."), weight.device.type) for weight in weights}
    return *kind, sum(weight.nbytes for weight in weights)


print("peft", peft.__version__, "torch", torch.__version__)
found = {}
for device in ("cpu", "meta"):
    with torch.device(device):
        found[f"within {device}"] = adapted(network())
found["moved to meta"] = adapted(network().to("meta"))
for device in ("cpu", "meta"):
    model = network().to(device)
    adapted(model)
    found[f"a second one on {device}"] = adapted(model, "second")
for case, (dtype, device, size) in found.items():
    print(f"{case}: {dtype} on {device}, {size} bytes")
half, whole = ("bfloat16", 1024), ("float32", 2048)
expected = [(*half, "cpu"), (*whole, "meta"), (*half, "meta"), (*half, "cpu"), (*whole, "cpu")]
sys.exit([(dtype, size, device) for dtype, device, size in found.values()] != expected)
PYTHON
