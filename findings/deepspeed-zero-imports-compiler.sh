#!/usr/bin/env bash
# DeepSpeed 0.19.8 with torch 2.13.0 (CPU): the first engine with ZeRO imports torch's whole compiler, whatever the
# optimizer is. To know which optimizers ZeRO takes, DeepSpeed imports its Muon at that moment, three of whose functions
# are decorated with `torch.compile`; decorating alone imports `torch._inductor`, 1.2 to 1.7 s of CPU time in
# every rank of every start. The engine below has a plain AdamW.
#
# Seen: "compiler before: False", "compiler after: True", "1426 modules, 1.7 s of CPU time" (one core of an AMD EPYC).
# Exits with 1 where that has changed. Needs Python 3.11, gcc and 2 GB; takes a few minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0' 'setuptools==78.1.1' 'wheel==0.48.0' 'numpy==2.3.5' 'packaging==26.3' 'ninja==1.13.2'
"${pip[@]}" --no-build-isolation 'deepspeed==0.19.8'
export DS_ACCELERATOR=cpu WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 TORCH_EXTENSIONS_DIR="$folder/extensions"
PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch
import deepspeed

COMPILER = "torch._inductor.compile_fx"
print("deepspeed", deepspeed.__version__, "torch", torch.__version__)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)  # compiles an operator of its own
layer = torch.nn.Linear(2, 2)
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
before, modules, began = COMPILER in sys.modules, len(sys.modules), time.process_time()
deepspeed.initialize(model=layer, optimizer=torch.optim.AdamW(layer.parameters()), config=config)
print(f"compiler before: {before}")
print(f"compiler after: {COMPILER in sys.modules}")
print(f"{len(sys.modules) - modules} modules, {time.process_time() - began:.1f} s of CPU time")
sys.exit(0 if not before and COMPILER in sys.modules else 1)
PYTHON
