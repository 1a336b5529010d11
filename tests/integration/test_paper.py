"""The paper remade by the real command, as small as it can be: killed twice on its way, and with a setting changed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

METHODS = ("sft", "orpo")
CONFIG: dict[str, Any] = {
    "name": "p",
    "seeds": [1],
    "run": {
        "model": {"dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 120},
        "train": {"max_steps": 4, "global_batch_size": 8, "checkpoint_every_steps": 2, "eval_every_steps": 2},
        "scaling": {"num_workers": 1, "cpus_per_worker": 1},
    },
    "methods": {
        "base": {"model": {"name_or_path": "<base>"}, "objective": {"name": "sft"}},
        "sft": {"model": {"name_or_path": "<base>"}, "objective": {"name": "sft"}},
        "orpo": {"model": {"name_or_path": "<base>"}, "objective": {"name": "orpo"}},
    },
    "sizes": {"s": {"base": "toy", "paper": "125M"}},
    "data": {"hh": {"paper": "hh", "title": "The embedded world"}},
    "figures": {"data": "hh", "size": "s"},
    "evaluation": {
        "prompts": {"source": "toy-test", "limit": 6}, "sampling": {"max_tokens": 4, "rounds": 2},
        "reward_models": {"truth": "toy"}, "generation": {"engine": "transformers"}, "embedder": None,
    },
}  # fmt: skip
STAGES = {"s-base", "hh-s-winrate-1", *(f"hh-s-{method}-1" for method in METHODS)}


class Paper:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        folder.mkdir()
        (folder / "paper.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))

    def begun(self, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "orpo_ray.cli", "paper", "paper.yaml", *overrides]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def killed_when(self, pattern: str) -> None:
        """As soon as there is such a file, and a random while later."""
        command = self.begun()
        try:
            while not any(self.folder.glob(pattern)):
                assert command.poll() is None, command.communicate()[0][-3000:]
                time.sleep(0.05)
            time.sleep(random.random())
        finally:
            os.killpg(command.pid, signal.SIGKILL)
            command.communicate()

    def whole(self, *overrides: str) -> str:
        command = self.begun(*overrides)
        said = command.communicate(timeout=500)[0]
        assert command.returncode == 0, said[-3000:]
        return said

    @property
    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / "runs/p/paper").glob("*.csv"))}

    @property
    def runs(self) -> dict[str, float]:
        """Folders of training runs, and when each was finished."""
        return {path.parent.name: path.stat().st_mtime for path in self.folder.glob("runs/p/stages/*/summary.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, beside_tests: dict[str, str]) -> Paper:
    """Made in one piece."""
    paper = Paper(tmp_path_factory.mktemp("paper") / "whole", beside_tests)
    paper.said = paper.whole()  # type: ignore[attr-defined]
    return paper


def test_one_command_leaves_a_page_with_its_tables(whole: Paper) -> None:
    place = whole.folder / "runs/p"
    assert {path.name for path in (place / "done").iterdir()} == STAGES
    assert (place / "paper/index.html").is_file() and {"table-2.csv"} <= whole.tables.keys()
    lines = (place / "paper/table-2.csv").read_text().splitlines()
    assert any(",sft," in line for line in lines) and any(",orpo," in line for line in lines)


def test_killed_twice_it_comes_to_the_same_bytes(whole: Paper, tmp_path: Path) -> None:
    paper = Paper(tmp_path / "killed", whole.environment)
    paper.killed_when("runs/p/stages/s-base-*/metrics.jsonl")
    paper.killed_when("runs/p/stages/hh-s-orpo-*/metrics.jsonl")
    paper.whole()
    assert paper.tables == whole.tables


def test_a_changed_setting_redoes_what_depends_on_it_alone(whole: Paper) -> None:
    before, tables = whole.runs, whole.tables
    again = {"hh-s-orpo-1", "hh-s-winrate-1"}
    assert begun(whole.whole("methods.orpo.objective.lambda=5")) == again
    after = whole.runs
    assert {name: after[name] for name in before} == before
    assert [name.rpartition("-")[0] for name in after.keys() - before.keys()] == ["hh-s-orpo-1"]
    assert whole.tables.keys() == tables.keys()
    assert begun(whole.whole()) <= again  # back again: all runs and responses are there
    assert whole.runs == after and whole.tables == tables
    assert begun(whole.whole()) == set()


def begun(said: str) -> set[str]:
    """Labels of the stages that a command has looked at."""
    return {line.split(": ")[1].partition(",")[0] for line in said.splitlines() if line.startswith("stage ")}
