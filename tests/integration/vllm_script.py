"""A script that asks vLLM about a fresh model, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OPTConfig

from orpo_ray.data import toyworld
from orpo_ray.inference.generation import ENVIRONMENT


def printed(script: str, folder: Path, config: OPTConfig, seed: int) -> Any:
    """What the last line of `script` is as JSON. In `sys.argv[1]` it finds a model of that `config` and the embedded
    world's tokenizer. `seed`: of its weights."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
