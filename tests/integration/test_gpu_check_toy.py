"""`doctor --gpu` at toy size: the whole of its path, with nothing but torch and transformers to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "unit" / "gpu-toy.jsonl"
MISSING = (
    "ray", "deepspeed", "vllm", "peft", "pydantic", "typer", "rich", "zstandard", "datasets", "psutil", "pyarrow",
    "fsspec", "scipy", "matplotlib",
)  # fmt: skip
START = f"""
import runpy, sys
for name in {MISSING}:
    sys.modules[name] = None  # an import of it now fails
runpy.run_module("orpo_ray.doctor.gpu", run_name="__main__", alter_sys=True)
"""

Lines = list[dict[str, Any]]


def read(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, str]:
    path = tmp_path_factory.mktemp("gpu") / "lines.jsonl"
    command = [sys.executable, "-c", START, "--toy", "--out", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return read(path), run.stdout


def test_nothing_fails_is_skipped_or_is_not_exact(done: tuple[Lines, str]) -> None:
    lines, printed = done
    assert not [line for line in lines if {"error", "skipped", "out_of_memory"} & line.keys()]
    assert {line["ok"] for line in lines if line["stage"] == "parity"} == {True, None}
    assert lines[-1]["complete"] is True and lines[-1]["fault"] is False
    assert [json.loads(line) for line in printed.splitlines() if line.startswith("{")] == lines
    assert "packing against plain forwards: ok in all 18 comparisons and controls" in printed


def test_lines_are_as_the_example_and_the_guide_have_them(done: tuple[Lines, str]) -> None:
    """So whoever reads such files finds what is written there."""

    def shape(line: dict[str, Any]) -> tuple[object, ...]:
        within = [(name, *sorted(value)) for name, value in line.items() if isinstance(value, dict)]
        said = (line["stage"], line.get("model"), line.get("family"), line.get("way"), line.get("dtype"))
        return *said, line.get("who"), line.get("memory"), sorted(line), within

    lines, example = done[0], read(EXAMPLE)
    assert [shape(line) for line in lines] == [shape(line) for line in example]
    guide = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    told = {name for line in lines for name in (line["stage"], *line)}
    told |= {name for line in lines for name in line.get("predicted_gib", {}) | line.get("measured_gib", {})}
    assert not [name for name in told if f"`{name}`" not in guide]


def test_memory_is_near_what_is_predicted(done: tuple[Lines, str]) -> None:
    """Of a toy model, of which batches and what a CPU needs beside are a larger part than of a large one."""
    every = [line for line in done[0] if line["stage"] == "memory"]
    found = [line for line in every if line["model"] == "toy-opt"]
    assert (len(every), len(found)) == (11, 6)
    for line in every:
        measured, predicted = line["measured_gib"], line["predicted_gib"]
        assert 0.99 < measured["states"] / (predicted["weights"] + predicted["optimizer"]) < 1.02
        if line in found and line["who"] == "orpo_ray":
            assert 0.9 < measured["activations"] / predicted["activations"] < 1.5
            assert 0.9 < measured["peak"] / sum(predicted.values()) < 1.3
    levels = {line["memory"]: line["measured_gib"]["activations"] for line in found if line["who"] == "orpo_ray"}
    assert levels["full"] < 0.6 * levels["none"] and levels["selective"] < levels["none"]
