"""`orpo-ray train` on records that are no pairs, through the real stack on two workers: KTO, and rankings."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_train import TOY, evaluations, lines
from transformers import AutoModelForSequenceClassification

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import prepare
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.report import write_report
from orpo_ray.training.from_checkpoint import export_checkpoint
from orpo_ray.training.launcher import train

torch.set_num_threads(1)


def config(folder: Path, name: str, records: list[dict[str, Any]], *overrides: str) -> TrainConfig:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {**TOY["data"], "train": str(file), "eval": None, "eval_fraction": 0.2}
    mapping = {**TOY, "name": name, "data": data, "storage": {"path": str(folder)}}
    return parse_config(mapping, ["train.max_steps=12", "train.eval_every_steps=6", *overrides], "test")


def test_kto(ray_cluster: None, tmp_path: Path) -> None:
    labelled = [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 3 else "chosen"], "label": i % 3 == 0}
        for i, row in enumerate(islice(toyworld.records("toy"), 300))
    ]
    settings = config(tmp_path, "kto", labelled, "objective={name: kto, undesirable_weight: 0.5}", "train.zero_stage=2")
    folder = train(settings).path
    first, *_, last = evaluations(folder)
    assert first["eval_reference_point"] == pytest.approx(0, abs=1e-4)
    rows = pq.read_table(folder / "eval_scores.parquet").to_pandas()
    # Where policy and reference agree, each response costs half of its weight.
    assert first["eval_loss"] == pytest.approx(np.where(rows["desirable"], 1, 0.5).mean() / 2, abs=1e-4)
    assert last["eval_loss"] < first["eval_loss"] and last["eval_reward_margin"] > 0
    assert all(line["reference_point"] >= 0 for line in lines(folder) if "loss" in line)
    assert len(list((tmp_path / ".cache" / "reference").iterdir())) == 4  # of both parts, and of their mismatches
    page = write_report(folder).read_text()
    assert "KTO" in page and "reward margin" in page


def test_rankings(ray_cluster: None, tmp_path: Path) -> None:
    ranked = [
        {
            "prompt": row["prompt"],
            "responses": ["Ada", row["rejected"], row["chosen"]][i % 2 :],
            "ratings": [1, 2, 5][i % 2 :],
        }
        for i, row in enumerate(islice(toyworld.records("toy"), 300))
    ]
    settings = config(
        tmp_path, "rankings", ranked, "objective={name: reward, loss: plackett_luce, centre: true}",
        "train.zero_stage=3", "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}",
    )  # fmt: skip
    folder = train(settings).path
    first, *_, last = evaluations(folder)
    assert last["eval_loss"] < first["eval_loss"] - 0.1 and last["eval_reward_accuracy"] > 0.55
    data = prepare(settings, load_tokenizer(settings.model))
    rows = pq.read_table(folder / "eval_scores.parquet").to_pandas()
    assert len(rows) == len(data.eval.compared().records) > len(data.eval)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        rewards = [
            [float(model(torch.from_numpy(np.concatenate([prompt, ids]))[None].long()).logits) for ids in responses]
            for prompt, *responses in map(data.train.pair, range(len(data.train)))
        ]
    assert abs(np.mean([reward for row in rewards for reward in row])) < 1e-4, "centred on all responses"
    assert "Calibration" in write_report(folder).read_text()
    exported = export_checkpoint(folder)
    again = AutoModelForSequenceClassification.from_pretrained(exported, dtype=torch.float32)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
