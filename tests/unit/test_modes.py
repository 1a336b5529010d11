"""Files of a run, an evaluation and a sweep are for whom the umask says, all alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_run import make_evaluation
from families import FAMILIES
from file_modes import unlike_the_umask
from test_checkpoints import engine, saved
from test_data_prepare import GOOD, write
from test_data_prepare import config as data_config
from test_export import trained
from test_lora import export, load, save_language_model, settings
from test_report import make_run
from test_sweep_results import STEPS, write_run
from test_sweep_results import config as sweep_config

from orpo_ray.atomic import next_folder
from orpo_ray.config import StorageConfig
from orpo_ray.data import toyworld
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.prepare import prepare
from orpo_ray.evaluation.store import RESPONSES, Pieces
from orpo_ray.inference.models import find_policy
from orpo_ray.report import write_evaluation_report, write_report, write_sweep_report
from orpo_ray.storage.mirror import mirrored
from orpo_ray.storage.run_folder import RunFolder, write_eval_scores
from orpo_ray.training.from_checkpoint import export_checkpoint
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import summary, write_best, write_results, write_summary


@pytest.fixture(params=[0o022, 0o027], ids=["umask-022", "umask-027"], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_models_adapters_and_what_an_evaluation_merges(tmp_path: Path) -> None:
    save_language_model(tmp_path / "base", FAMILIES["opt-pre-norm"])
    folder = export(load(tmp_path / "base"), settings(tmp_path / "base", tmp_path / "runs"))
    export(load(tmp_path / "base"), settings(tmp_path / "base", tmp_path / "runs"))  # in place of the first
    assert {"model/model.safetensors", "adapter/adapter_model.safetensors"} <= {
        file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")
    }
    merged = find_policy("x", str(folder / "adapter"), tmp_path / "runs" / "cache").folder
    assert (merged / "model.safetensors").is_file()
    assert unlike_the_umask(tmp_path / "runs") == {}


@pytest.mark.parametrize("objective", ["orpo", "reward"])
def test_checkpoints_and_the_models_that_are_made_of_them(objective: str, tmp_path: Path) -> None:
    config, _ = trained(tmp_path, f"objective={{name: {objective}}}")
    made = [export_checkpoint(config.run_dir, 2), export_checkpoint(config.run_dir, 4, tmp_path / "runs" / "four")]
    assert all((folder / "model.safetensors").is_file() for folder in made)
    assert list((config.run_dir / "checkpoints").rglob("*.safetensors"))
    assert unlike_the_umask(tmp_path / "runs") == {}


def test_all_else_of_a_run(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [*GOOD, b"{"])
    config = data_config(tmp_path / "runs" / ".cache", pairs, eval_fraction=0.3, on_bad_record="quarantine")
    config = config.model_copy(update={"storage": StorageConfig(path=str(tmp_path / "runs"))})
    prepare(config, toyworld.tokenizer())
    folder = RunFolder(make_run(config.run_dir, steps=3))
    folder.config.unlink()
    folder.open_for(config)
    folder.note("a worker was lost")
    folder.note_checkpoint(1, "here")
    folder.append_metrics({"step": 4, "loss": 1.0})
    saved(folder.checkpoints, engine(), [1, 2])
    held_out = PairDataset(np.zeros(0, np.int32), np.arange(8).reshape(2, 4), np.arange(2))
    write_eval_scores(folder.eval_scores, held_out, torch.zeros(2, 3))
    write_report(folder.path)
    with mirrored(StorageConfig(path=str(tmp_path / "runs"), mirror=str(tmp_path / "copies")), config.name):
        pass
    for place in ("runs", "copies"):
        assert unlike_the_umask(tmp_path / place) == {}


def test_an_evaluation_and_a_sweep(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path / "runs" / "evaluation", prompts=9, rounds=1)
    Pieces(evaluation / "responses", "sft", "a" * 12, RESPONSES).write(0, [{"prompt": 0, "round": 0, "text": "x"}])
    write_evaluation_report(evaluation)
    config = sweep_config(tmp_path / "runs", "trials=2")
    folder = SweepFolder(config)
    folder.open_for(config)
    searcher, ledger = searcher_of(config), Ledger(config, folder, STEPS)
    for index in range(2):
        settings = searcher.settings(index, [])
        write_run(folder.trial(index).path, settings)
        folder.trial(index).config.write_text(folder.training(index, settings).to_yaml())
        ledger.begin(settings)
    folder.fail(1, "lost")
    write_results(folder, ledger)
    write_best(folder, config, ledger.trials[0])
    write_summary(folder, summary(config, ledger, STEPS, ledger.trials[0], []) | {"seconds": 1.0, "finished": "yes"})
    write_sweep_report(folder.path)
    assert unlike_the_umask(tmp_path / "runs") == {}


def test_a_folder_takes_anothers_place_with_its_modes_mended(tmp_path: Path) -> None:
    """Whatever library made them; what the umask already allows is not touched, which some storage would refuse."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with next_folder(tmp_path / "target") as new:
        (new / "deep").mkdir()
        for name in ("private", "deep/private"):
            (new / name).touch(mode=0o600)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "target", "target/deep", "target/deep/private", "target/private",
    ]  # fmt: skip
    assert unlike_the_umask(tmp_path) == {}
