"""Stages on a real cluster: at the same time as far as it holds them, and on from where a failure left them."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from orpo_ray.beside import beside
from orpo_ray.config import EvaluationConfig, TrainConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.stages.graph import Graph, StageConfig
from orpo_ray.stages.run import LOG, run_stages
from orpo_ray.storage.driver_lock import LOCK
from orpo_ray.terminal import Console

DATA = {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 120}


def training(folder: Path, name: str, model: str, **more: Any) -> TrainConfig:
    mapping = {
        "name": name, "model": {"name_or_path": model, "dtype": "float32"}, "data": DATA,
        "train": {"max_steps": 3, "global_batch_size": 8}, "storage": {"path": str(folder)},
        "scaling": {"num_workers": 1, "cpus_per_worker": 1}, **more,
    }  # fmt: skip
    return parse_as(TrainConfig, mapping, [], name)


def graph(folder: Path, reference: str) -> Graph:
    base, left, right = (str(folder / name) for name in ("base", "left", "right"))
    won = {
        "name": "won", "models": {"left": left, "right": right}, "prompts": {"source": "toy-test", "limit": 2},
        "reward_models": {"truth": "toy"}, "sampling": {"max_tokens": 2}, "storage": {"path": str(folder)},
        "generation": {"engine": "transformers"}, "embedder": None,
    }  # fmt: skip
    stages: dict[str, StageConfig] = {
        "base": training(folder, "base", "toy"),
        "left": training(folder, "left", base, objective={"name": "orpo", "lambda": 0.5}),
        "right": training(
            folder,
            "right",
            base,
            objective={"name": "dpo", "reference": reference},
            train={"max_steps": 20, "global_batch_size": 8},
        ),
        "won": parse_as(EvaluationConfig, won, [], "won"),
    }
    return Graph(stages)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_driver_of(folder: Path, over: threading.Event) -> None:
    """Once, as soon as its workers train."""
    while not over.wait(0.05):
        with suppress(FileNotFoundError, json.JSONDecodeError):
            if not (folder / "metrics.jsonl").stat().st_size:
                continue
            os.kill(json.loads((folder / LOCK).read_text())["pid"], signal.SIGKILL)
            return


def test_stages_run_beside_each_other_and_go_on_behind_a_failure(tmp_path: Path, ray_cluster: None) -> None:
    said = io.StringIO()
    missing = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^1 of 4 stages failed: right: .*nowhere.*; not begun for it: won$"):
        run_stages(graph(tmp_path, missing), Console(file=said, width=400))
    told = [line for line in said.getvalue().splitlines() if line.startswith("stage ") or ": failed: " in line]
    assert told[0] == "stage 1 of 4: base"
    # Both are told to begin before either has ended: there is room for two.
    assert sorted(line.partition(",")[0] for line in told[1:3]) == [
        "stage 2 of 4: left", "stage 3 of 4: right",
    ]  # fmt: skip
    assert told[3].startswith("right: failed: ") and len(told) == 4
    assert "left: done; the model is in" in (tmp_path / "left" / LOG).read_text()
    before = {name: lines_of(tmp_path / name) for name in ("base", "left")}

    base = str(tmp_path / "base")
    said = io.StringIO()
    with beside(partial(kill_driver_of, tmp_path / "right")):
        pages = run_stages(graph(tmp_path, base), Console(file=said, width=400))
    assert said.getvalue().count("right: its process was lost, and is begun again: ") == 1
    assert set(pages) == {"base", "left", "right", "won"} and all(page.is_file() for page in pages.values())
    assert before == {name: lines_of(tmp_path / name) for name in before}
    assert set(json.loads((tmp_path / "won" / "winrates.json").read_text())["models"]) == {"left", "right"}
    assert lines_of(tmp_path / "left")[-1]["step"] == 3
    # Not even what Ray Train's controller held for the process that was lost.
    held = [row for row in ray.util.placement_group_table().values() if row["state"] != "REMOVED"]
    assert held == []
