"""A finished run gets more steps where that is exact, and is left as it is where not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.report.runs import read_events
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console
from orpo_ray.training.reopening import reopened

DONE = 8
CONSTANT = ("optim.schedule=constant", "optim.warmup_steps=2")
ALLOWED = "resume.allow_changes=[train.max_steps, train.epochs]"


def finished(storage: Path, *overrides: str) -> RunFolder:
    """A run that has finished with eight steps."""
    own = settings(storage, f"train.max_steps={DONE}", *overrides)
    folder = RunFolder(own.run_dir)
    folder.open_for(own)
    folder.append_metrics({"step": DONE, "loss": 3.0})
    checkpoints = Checkpoints(own.checkpoints_location)
    checkpoints.open(DONE)
    checkpoints.commit(Manifest(DONE, {}, DONE, own.digest(), "the data", None, {}))
    folder.summary.write_text(json.dumps({"steps": DONE}))
    return folder


def settings(storage: Path, *overrides: str) -> TrainConfig:
    plain = {"name": "run", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    return parse_config({**plain, "storage": {"path": str(storage)}}, list(overrides), "test")


def reopen(folder: RunFolder, total_steps: int, *overrides: str, data: str = "the data") -> str | None:
    """What is said where it stays finished, None where it does not. As the command does."""
    own, said = settings(folder.path.parent, *overrides), io.StringIO()
    folder.open_for(own)
    return None if reopened(folder, own, total_steps, data, Console(file=said, width=400)) else said.getvalue()


def contents(folder: RunFolder) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ""),
        (("scaling.num_workers=3",), "; of no effect: scaling.num_workers"),
        (("train.keep=both", "eval.win_rate=null", "resume.allow_changes=[seed]"), "; of no effect: train.keep"),
        (("train.epochs=7", ALLOWED), "; of no effect: train.epochs"),
    ],
)
def test_what_has_no_effect_is_said(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    folder = finished(tmp_path)
    before = contents(folder)
    assert reopen(folder, DONE, f"train.max_steps={DONE}", *overrides) == f"{folder.path}: already finished{said}\n"
    assert contents(folder) == before


@pytest.mark.parametrize(
    "schedule",
    [
        CONSTANT,
        ("optim.schedule=inverse_sqrt", "optim.warmup_steps=2"),
        ("optim.schedule=cosine", "optim.warmup_steps=99"),
    ],
)
def test_more_steps_go_on(tmp_path: Path, schedule: tuple[str, ...]) -> None:
    folder = finished(tmp_path, *schedule)
    longer = ("train.max_steps=12", ALLOWED, *schedule)
    assert reopen(folder, 12, *longer) is None
    assert not folder.finished and folder.config.read_text() == settings(tmp_path, *longer).to_yaml()
    assert read_events(folder.events)[0][1] == "had finished with 8 steps, and goes on to 12"


@pytest.mark.parametrize(
    ("total", "overrides", "why"),
    [
        (12, ("optim.warmup_steps=2",), r"with train\.max_steps the learning rate of the steps .* \(optim\.schedule\)"),
        (12, ("optim.schedule=linear", "optim.warmup_steps=2"), "learning rate"),
        (12, ("optim.schedule=constant", "optim.warmup_steps=0.5"), "learning rate"),
        (4, CONSTANT, "would leave 4 of its 8 steps out"),
    ],
)
def test_what_would_have_been_another_run_does_not(
    tmp_path: Path, total: int, overrides: tuple[str, ...], why: str
) -> None:
    folder = finished(tmp_path, *overrides)
    before = contents(folder)
    with pytest.raises(UserError, match=rf"a finished run, which cannot go on: .*{why}.*name_or_path={folder.path} "):
        reopen(folder, total, f"train.max_steps={total}", ALLOWED, *overrides)
    assert contents(folder) == before


def test_nor_does_one_without_its_checkpoint_or_on_other_data(tmp_path: Path) -> None:
    folder = finished(tmp_path, *CONSTANT)
    with pytest.raises(UserError, match="its pairs have changed"):
        reopen(folder, 12, "train.max_steps=12", ALLOWED, *CONSTANT, data="other data")
    Checkpoints(str(folder.checkpoints)).discard(DONE)
    with pytest.raises(UserError, match="its checkpoints are gone"):
        reopen(folder, 12, "train.max_steps=12", ALLOWED, *CONSTANT)
    assert folder.finished


def test_nor_without_being_told_to(tmp_path: Path) -> None:
    folder = finished(tmp_path, *CONSTANT)
    with pytest.raises(UserError, match=r"finished run of 8 steps .*with 'resume.allow_changes=\[train.max_steps\]'"):
        reopen(folder, 12, "train.max_steps=12", *CONSTANT)
    assert folder.finished
