"""Results of an evaluation, or scores, never stand beside settings that they are not of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from orpo_ray.config import EvaluationConfig, ScoreConfig
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation import evaluate, score
from orpo_ray.evaluation.store import EvaluationFolder, ScoreFolder


def interrupt(*given: Any) -> NoReturn:
    raise KeyboardInterrupt


def evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that is interrupted while it generates."""
    monkeypatch.setattr(evaluate, "_work", interrupt)
    given = folder.parent / "given.json"
    given.write_text(json.dumps([{"prompt": next(iter(toyworld.records("toy-test")))["prompt"], "response": "So."}]))
    evaluate.evaluate(
        EvaluationConfig.model_validate({
            "name": folder.name, "models": {"a": str(given)}, "prompts": {"source": str(given), "format": "prompts"},
            "reward_models": {"truth": "toy"}, "embedder": None, "storage": {"path": str(folder.parent)},
        })
    )  # fmt: skip


def scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are interrupted while a model scores."""
    monkeypatch.setattr(score, "complete", interrupt)
    score.score(
        ScoreConfig.model_validate({
            "name": folder.name, "reward_models": {"truth": "toy"}, "prompts": {"source": "toy-test", "limit": 2},
            "storage": {"path": str(folder.parent)},
        })
    )  # fmt: skip


@pytest.mark.parametrize(
    ("work", "result"), [(evaluation, EvaluationFolder(Path()).winrates), (scores, ScoreFolder(Path()).summary)]
)
def test_what_was_found_with_others_is_gone_at_once(
    work: Any, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / result).write_text('{"key": "of other settings"}')
    (folder / "config.yaml").write_text("name: new\nreward_models: {}\n" + "models: {}\n" * (work is evaluation))
    with pytest.raises(KeyboardInterrupt):
        work(folder, monkeypatch)
    assert "truth: toy" in (folder / "config.yaml").read_text()
    assert not (folder / result).exists()


@pytest.mark.parametrize("work", [evaluation, scores])
def test_the_folder_of_a_run_is_not_taken(work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: new\nmodel: {}\n")
    with pytest.raises(UserError, match=rf"{folder}: holds the folder of another kind \(training run\)"):
        work(folder, monkeypatch)
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "name: new\nmodel: {}\n"
