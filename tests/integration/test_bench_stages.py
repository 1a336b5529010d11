"""Benchmarks of an evaluation's stages, through the real stack, in the embedded world."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.data import toyworld

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = {"max_tokens": 8, "rounds": 2}


def bench(folder: Path, environment: dict[str, str], measures: str, **settings: Any) -> dict[str, Any]:
    mapping = {
        "name": measures, "measures": measures, "tokenizer": "toy", "rounds": 1,
        "prompts": {"source": "toy-test", "limit": 36}, **settings,
    }  # fmt: skip
    (folder / "bench.yaml").write_text(yaml.safe_dump(mapping))
    command = [sys.executable, "-m", "orpo_ray.cli", "bench", str(folder / "bench.yaml"), "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / f"{measures}.json").read_text())
    assert result["configuration"]["prompts"]["limit"] == 36 and result["versions"]["ray"]
    return result


def made(result: dict[str, Any]) -> dict[str, list[int]]:
    return {name: entry["rounds"]["made"] for name, entry in result["contestants"].items()}


def words() -> list[str]:
    """Of the toy tokenizer."""
    return [word for token in toyworld.tokenizer().get_vocab() if (word := token.removeprefix("▁")).isalpha()]


def test_generation_beside_a_bare_engine(tmp_path: Path, beside_tests: dict[str, str]) -> None:
    """On prompts that are no requests of the embedded world, whose truth nobody asks for."""
    asked = "".join(json.dumps({"prompt": f"{a} {b}"}) + "\n" for a, b in pairwise(words()[:37]))
    (tmp_path / "asked.jsonl").write_text(asked)
    prompts = {"source": str(tmp_path / "asked.jsonl"), "limit": 36}
    result = bench(tmp_path, beside_tests, "generation", policy="toy", sampling=SAMPLING, prompts=prompts)
    ours, bare, default = made(result).values()
    assert ours == bare == default  # the same requests and seeds, so the same tokens
    assert 36 * 2 < ours[0] <= 36 * 2 * 8


@pytest.mark.long
def test_judging_beside_a_bare_engine(tmp_path: Path, beside_tests: dict[str, str]) -> None:
    shown = "{{ turns[0].question }} {{ turns[0].first }} {{ turns[0].second }}"
    (tmp_path / "judge.yaml").write_text(f"user: '{shown}'\n")
    judging = {"prompt": str(tmp_path / "judge.yaml"), "labels": words()[:2]}
    result = bench(tmp_path, beside_tests, "judging", judge="toy", chat_template="orpo", judging=judging)
    ours, bare, default = made(result).values()
    assert 20 < ours[0] <= 36 and ours == bare == default  # a token each; some answers are the same


def test_scoring_beside_padded_batches(tmp_path: Path, beside_tests: dict[str, str]) -> None:
    result = bench(tmp_path, beside_tests, "scoring", judge="toy", batches=[5], rounds=2)
    assert made(result) == {way: [72, 72] for way in ("orpo_ray", "padded, 5", "padded, 5, sorted")}
    packed, padded, by_length = (entry["computed_tokens"] for entry in result["contestants"].values())
    assert packed < by_length <= padded
    assert result["contestants"]["padded, 5"]["tokens_to_first"] == pytest.approx(padded / packed)


@pytest.mark.long
def test_the_pipeline_beside_its_stages(tmp_path: Path, beside_tests: dict[str, str]) -> None:
    result = bench(tmp_path, beside_tests, "pipeline", policy="toy", judge="toy", sampling=SAMPLING)
    assert made(result) == {"at once": [72], "generation": [72], "scoring": [72]}
    assert 0 < result["to_the_slower"]["min"] <= result["to_the_slower"]["max"]
