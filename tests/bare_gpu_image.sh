#!/usr/bin/env bash
# `doctor --gpu` as a bare GPU image has it: torch 2.11 and transformers 5.17 in an environment of their own, without
# Ray, DeepSpeed, vLLM, peft, pydantic and typer. Toy size, so no GPU is needed. Downloads 3 GB the first time.
#
#   tests/bare_gpu_image.sh [FOLDER]      FOLDER keeps the environment; default: one that is removed at the end
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
folder=${1:-}
if [ -z "$folder" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi

if [ ! -x "$folder/bin/python" ]; then
  "$python" -m venv "$folder"
  "$folder/bin/pip" install --quiet 'torch==2.11.*' 'transformers==5.17.*' 'numpy>=2'
  # They come with torch's CUDA packages and with transformers' own command line. An image may lack them.
  "$folder/bin/pip" uninstall --quiet --yes pydantic pydantic_core typer rich
fi

cd "$repository"
PYTHONPATH=. "$folder/bin/python" -m orpo_ray.doctor.gpu --toy --out "$folder/gpu-$(date +%s).jsonl"
