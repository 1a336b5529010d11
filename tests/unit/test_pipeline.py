"""A pipeline: its configuration, and that its stages follow each other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.config import load_pipeline
from orpo_ray.errors import UserError
from orpo_ray.pipeline import run_pipeline
from orpo_ray.stages import run as run_module
from orpo_ray.terminal import Console


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base: dict[str, Any] = {"name": "a", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    dpo = {"name": "dpo", "reference": "runs/a"}
    second = {**base, "name": "b", "model": {"name_or_path": "./runs/a"}, "objective": dpo}
    reward = {**base, "name": "judge", "objective": {"name": "reward"}, "scaling": {"num_workers": 7}}
    evaluation = {
        "name": "e", "models": {"mine": "./runs/b", "theirs": "runs/other"}, "prompts": {"source": "toy-test"},
        "reward_models": {"judge": str(tmp_path / "runs/judge")},
    }  # fmt: skip
    Path("a.yaml").write_text(yaml.safe_dump(base))
    path = Path("pipeline.yaml")
    train = {"first": "a.yaml", "second": second, "judge": reward}
    path.write_text(yaml.safe_dump({"train": train, "evaluate": evaluation}, sort_keys=False))
    return path


def test_stages_stand_in_their_order_with_their_overrides(file: Path) -> None:
    found = load_pipeline(file, ["train.second.optim.lr=1e-4", "evaluate.sampling.rounds=5"])
    assert [(label, run.name) for label, run in found.runs.items()] == [
        ("first", "a"),
        ("second", "b"),
        ("judge", "judge"),
    ]
    assert (found.runs["first"].optim.lr, found.runs["second"].optim.lr) == (8e-6, 1e-4)
    assert found.evaluation.sampling.rounds == 5


def test_storage_of_all_stages_takes_their_references_with_it(file: Path) -> None:
    found = load_pipeline(file, ["storage.path=/shared/runs"])
    assert [run.run_dir for run in found.runs.values()] == [Path("/shared/runs") / name for name in ("a", "b", "judge")]
    second = found.runs["second"]
    assert second.model.name_or_path == second.objective.reference == "/shared/runs/a"  # type: ignore[union-attr]
    assert found.runs["first"].model.name_or_path == "toy"
    paths = {label: model.path for label, model in found.evaluation.models.items()}
    assert paths == {"mine": "/shared/runs/b", "theirs": "runs/other"}
    assert found.evaluation.reward_models == {"judge": "/shared/runs/judge"}
    assert found.evaluation.storage.path == "/shared/runs"


def test_what_is_in_a_run_is_taken_along_and_links_are_followed(file: Path, tmp_path: Path) -> None:
    """Else an older run would be evaluated, in the place of the one that was trained."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    models = "evaluate.models={whole: runs/b, kept: ./runs/b/model, there: scratch/a, other: runs/bb/model}"
    drawn = "train.second.data.train=[{source: toy, name: t}, {source: runs/a/drawn.jsonl, name: d}]"
    found = load_pipeline(file, ["storage.path=/shared/runs", models, drawn])
    assert [one.source for one in found.runs["second"].data.train] == ["toy", "/shared/runs/a/drawn.jsonl"]  # type: ignore[union-attr]
    assert {label: model.path for label, model in found.evaluation.asked.items()} == {
        "whole": "/shared/runs/b", "kept": "/shared/runs/b/model", "there": "/shared/runs/a", "other": "runs/bb/model",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.second.optim.lrr=1"], "pipeline.yaml: train.second: unknown key optim.lrr; did you mean optim.lr?"),
        (["evaluate.sampling.round=1"], "pipeline.yaml: evaluate: unknown key sampling.round; did you mean "),
        (["train.evaluate={name: x}"], "pipeline.yaml: train.evaluate: the evaluation is called so; choose another"),
        (["train.first=b.yaml"], "pipeline.yaml: train.first: should be a mapping of keys"),
        (["evaluate.models={x: runs/c}", "evaluate.reward_models={x: toy}"], "evaluate: none of its models is a run"),
        (["evaluat.x=1"], "unknown key evaluat; did you mean evaluate?"),
        (["train=null"], "pipeline.yaml: train"),
    ],
)
def test_a_mistake_in_any_stage_is_told_first(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_pipeline(file, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_evaluation_is_told(file: Path) -> None:
    mapping = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({"train": mapping["train"]}))
    with pytest.raises(UserError, match=r"pipeline\.yaml: evaluate"):
        load_pipeline(file)


def test_every_stage_is_run_behind_what_it_needs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    def carried_out(config: Any, curves: dict[str, Path], *_: Any) -> Path:
        done.append((config.name, [*curves]))
        return Path(config.name)

    monkeypatch.setattr(run_module, "connect", lambda cpus: done.append(cpus))
    monkeypatch.setattr(run_module, "cluster_nodes", lambda: [(8.0, 0.0)])
    monkeypatch.setattr(run_module, "carry_out", carried_out)
    assert run_pipeline(load_pipeline(file), Console(file=io.StringIO())) == Path("e")
    assert done == [8, ("a", []), ("b", ["first"]), ("judge", []), ("e", ["first", "second"])]
