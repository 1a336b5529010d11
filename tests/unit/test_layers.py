"""Layers import downward only, and the training core runs where Ray, DeepSpeed and vLLM are not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "orpo_ray"
LAYERS = {
    "errors": 0, "config": 1, "telemetry": 2, "statistics": 2, "data": 2, "cluster": 3, "modeling": 3, "storage": 3,
    "leaderboards": 3, "costs": 4, "inference": 4, "objectives": 4, "judging": 5, "training": 5, "evaluation": 6,
    "report": 7, "bench": 7, "tuning": 7, "doctor": 8, "status": 8, "stages": 8, "demo": 8, "pipeline": 8, "paper": 9,
    "api": 9, "cli_common": 9, "cli_results": 9, "cli": 10, "__init__": 10,  # which imports when it is asked
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> int:
    """Of a dotted module such as `orpo_ray.data.packing`; the package itself counts as the lowest."""
    parts = module.split(".")
    return LAYERS.get(parts[1], 0) if len(parts) > 1 else 0


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = layer(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    for module in imported(path):
        if module.startswith("orpo_ray"):
            assert layer(module) <= own, f"{path.name} imports {module} from a layer above"


def test_the_core_needs_no_cluster() -> None:
    code = """
import sys
for name in ("ray", "deepspeed", "vllm", "peft"):
    sys.modules[name] = None  # an import of it now fails
import orpo_ray.training.loop, orpo_ray.training.batches, orpo_ray.data.prepare, orpo_ray.modeling.loading
import orpo_ray.training.from_checkpoint
from orpo_ray.training.engine import TorchEngine
"""
    subprocess.run([sys.executable, "-c", code], check=True)
