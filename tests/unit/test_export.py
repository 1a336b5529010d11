"""`orpo-ray export`: any checkpoint of a run becomes the model that the run would have kept at its step."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, random_pairs
from safetensors.torch import load_file, save_file
from test_checkpoints import flip
from test_reward_model import packed_rewards, save_language_model
from test_weights import loaded
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.modeling.digests import frozen_digest
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import load_scorer
from orpo_ray.objectives.registry import build_objective
from orpo_ray.storage.checkpoint_files import FileSum, write_vectors
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import RunFolder, kept_model
from orpo_ray.training import from_checkpoint
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.from_checkpoint import export_checkpoint
from orpo_ray.training.loop import Line, Sink, State, run
from orpo_ray.training.saving import Saver
from orpo_ray.training.source import PairSource

PAIRS = random_pairs(16)


class Saving(Sink):
    """Keeps what a run keeps, and the weights of each checkpoint."""

    def __init__(self, folder: RunFolder, weights: dict[str, str]) -> None:
        self.folder, self.weights = folder, weights
        self.exported: dict[int, dict[str, torch.Tensor]] = {}

    def metrics(self, line: Line) -> None:
        self.folder.append_metrics(line)

    def checkpoint(self, engine: Any, state: State, line: Line) -> None:
        saver = Saver(Checkpoints(str(self.folder.checkpoints)), engine, newest=9, best=0, warn=pytest.fail)
        saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "pairs", None, {}, self.weights))
        saver.finish()
        whole = merged_weights(engine.policy.model, engine.weights())
        self.exported[state.step] = {name: weight.clone() for name, weight in whole.items()}


def trained(tmp_path: Path, *overrides: str) -> tuple[TrainConfig, Saving]:
    """A run of four steps over a small base, with checkpoints of steps 2 and 4 and an evaluation of step 4 alone."""
    save_language_model(tmp_path / "base", FAMILIES["llama-grouped-query"], pad_token="<pad>")
    mapping = {
        "name": "run", "model": {"name_or_path": str(tmp_path / "base"), "dtype": "float32"},
        "data": {"train": "unused"}, "optim": {"lr": 1e-2, "warmup_steps": 0},
        "train": {"global_batch_size": 8, "epochs": 2, "eval_every_steps": 4, "checkpoint_every_steps": 2},
        "storage": {"path": str(tmp_path / "runs")},
    }  # fmt: skip
    config = parse_config(mapping, list(overrides), "test")
    folder = RunFolder(config.run_dir)
    folder.open_for(config)
    policy = load_scorer(build_objective(config.objective).model, config.model, seed=config.seed)
    frozen = frozen_digest(policy.model)
    sink = Saving(folder, {} if frozen is None else {"model.name_or_path": frozen})
    engine = TorchEngine(policy, config.optim)
    run(engine, config, PairSource(engine, config, PAIRS, PAIRS.subset(np.arange(3))), sink, State())
    return config, sink


def assert_exported(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    held = load_file(folder / "model.safetensors")
    assert held.keys() == expected.keys()
    for name, weight in expected.items():
        assert held[name].dtype == weight.dtype and torch.equal(held[name], weight), name


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.dtype=bfloat16"], ["model.lora={rank: 2}"], ["model.init=random", "model.lora={rank: 2}"],
     ["objective={name: reward}"]],
)  # fmt: skip
def test_it_is_the_runs_own_model_bit_by_bit(overrides: list[str], tmp_path: Path) -> None:
    config, sink = trained(tmp_path, *overrides)
    newest = export_checkpoint(config.run_dir)
    assert newest == config.run_dir / "model-step-4"
    assert_exported(newest, sink.exported[4])
    earlier = export_checkpoint(config.run_dir, 2, tmp_path / "models" / "two")
    assert_exported(earlier, sink.exported[2])
    assert any(not torch.equal(weight, sink.exported[2][name]) for name, weight in sink.exported[4].items())
    cards = [(folder / "README.md").read_text() for folder in (newest, earlier)]
    for step, card in zip((4, 2), cards, strict=True):
        assert f"| weights of step | {step} of 4 (exported from its checkpoint) |" in card
    assert "| eval_loss | " in cards[0] and "were not evaluated at that step" in cards[1]
    auto = AutoModelForSequenceClassification if "objective={name: reward}" in overrides else AutoModelForCausalLM
    assert auto.from_pretrained(newest) and AutoTokenizer.from_pretrained(newest)
    assert kept_model(newest) == (4, "exported from its checkpoint")


def test_the_shards_of_many_ranks_make_one_model(tmp_path: Path) -> None:
    """Runs of elements in any files and order, as ZeRO leaves them."""
    config, sink = trained(tmp_path)
    step = config.run_dir / "checkpoints" / "step-00000004"
    vectors = loaded(step / "rank-00000.safetensors")
    files: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for i, (key, vector) in enumerate(sorted(vectors.items(), reverse=True)):
        where, _, part = key.rpartition("/")
        name = where.partition("@")[0]
        cut = len(vector) // 3 + 1
        for start in range(0, len(vector), cut):
            files[(i + start) % 3][f"{name}@{start}/{part}"] = vector[start : start + cut].contiguous()
    sums = {}
    for rank, held in enumerate(files):
        with (step / f"rank-{rank:05d}.safetensors").open("wb") as file:
            sums[f"rank-{rank:05d}.safetensors"] = write_vectors(file, held)
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"] = {name: FileSum(*total)._asdict() for name, total in sums.items()}
    (step / "manifest.json").write_text(json.dumps(manifest))
    assert_exported(export_checkpoint(config.run_dir), sink.exported[4])


def test_a_reward_model_is_centred_over_the_training_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = trained(tmp_path, "objective={name: reward, centre: true}")
    prepared = type("Prepared", (), {"train": PAIRS, "digest": "pairs"})
    monkeypatch.setattr(from_checkpoint, "prepare", lambda *_: prepared)
    monkeypatch.setattr(from_checkpoint, "_TOGETHER", 5)
    model = load_reward_model(
        config.model.model_copy(update={"name_or_path": str(export_checkpoint(config.run_dir))}), seed=9
    ).eval()
    with torch.no_grad():
        rewards = packed_rewards(model, [PAIRS.pair(i) for i in range(len(PAIRS))])
    assert abs(float(rewards.mean())) < 1e-6 < float(rewards.std())
    prepared.digest = "others"
    with pytest.raises(UserError, match=r"^data\.train or data\.eval: other pairs than those that the run began with"):
        export_checkpoint(config.run_dir, 2)


def test_a_folder_that_was_moved_and_checkpoints_elsewhere_are_found(tmp_path: Path) -> None:
    config, sink = trained(tmp_path)
    moved = config.run_dir.rename(tmp_path / "moved")
    assert_exported(export_checkpoint(moved), sink.exported[4])
    (tmp_path / "far").mkdir()
    (moved / "checkpoints").rename(tmp_path / "far" / "moved")
    held = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(held.replace("checkpoints: null", f"checkpoints: {tmp_path / 'far'}"))
    assert_exported(export_checkpoint(moved, 2), sink.exported[2])


def test_a_base_that_was_retrained_in_place_is_not_merged_into(tmp_path: Path) -> None:
    config, _ = trained(tmp_path, "model.lora={rank: 2}")
    weights = loaded(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^model\.name_or_path: the base's frozen weights are not those that the run"):
        export_checkpoint(config.run_dir)


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    config, _ = trained(tmp_path)
    folder, there = config.run_dir, tmp_path / "there"
    for name in ("empty", "begun", "there", "damaged"):
        (tmp_path / name).mkdir()
    for name in ("begun", "damaged"):
        (tmp_path / name / "config.yaml").write_text(config.to_yaml())
    shutil.copytree(folder / "checkpoints", tmp_path / "damaged" / "checkpoints")
    (tmp_path / "damaged" / "metrics.jsonl").write_text('{"step": 2}\n{"step": "x"}\n')
    flip(folder / "checkpoints" / "step-00000002" / "rank-00000.safetensors")
    cases: list[tuple[Path, int | None, Path | None, str]] = [
        (tmp_path / "nowhere", None, None, "nowhere: not the folder of a training run (no config.yaml)"),
        (tmp_path / "empty", None, None, "empty: not the folder of a training run (no config.yaml)"),
        (tmp_path / "begun", None, None, "begun/checkpoints: holds no finished checkpoint"),
        (folder, 3, None, "holds no finished checkpoint of step 3; --step may be 2, 4"),
        (folder, 2, None, "rank-00000.safetensors has another content than its manifest says"),
        (tmp_path / "damaged", None, None, "damaged/metrics.jsonl, line 2: has no step number"),
        (folder, None, there, f"{there}: is there already; remove it, or choose another by --out"),
    ]
    for run_folder, step, out, told in cases:
        with pytest.raises(UserError) as caught:
            export_checkpoint(run_folder, step, out)
        assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not list(there.iterdir()) and not (folder / "model-step-2").exists()
