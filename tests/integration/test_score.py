"""`orpo-ray score` on real actors: a reward model from elsewhere beside the truth, interrupted and resumed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import ScoreConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.evaluation.score import read_scores, score
from orpo_ray.evaluation.store import Pieces, ScoreFolder
from orpo_ray.status.read import read_status

RECORDS = 70  # three blocks


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = copy.deepcopy(toyworld.tokenizer())
    tokenizer.chat_template = NAMED_TEMPLATES["orpo"]
    config = toyworld.model_config()
    config.num_hidden_layers, config.num_labels, config.pad_token_id = 1, 1, tokenizer.eos_token_id
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(storage: Path, judge: Path, name: str) -> ScoreConfig:
    source = storage / "pairs.jsonl"
    pairs = list(toyworld.records("toy-test"))[:RECORDS]
    source.write_text("".join(json.dumps({**pair, "subset": f"of {i % 3}"}) + "\n" for i, pair in enumerate(pairs)))
    mapping = {
        "name": name, "reward_models": {"theirs": str(judge), "truth": "toy"}, "prompts": {"source": str(source)},
        "scaling": {"scorers": 1}, "storage": {"path": str(storage)},
    }  # fmt: skip
    return parse_as(ScoreConfig, mapping, [], "test")


def comparable(folder: ScoreFolder) -> dict[str, Any]:
    return {key: value for key, value in read_scores(folder).items() if key != "name"}


def test_scores_are_plain_forwards_and_an_interrupted_run_comes_to_the_same(
    ray_cluster: None, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = score(config_of(tmp_path, judge, "whole"))
    rows = pq.read_table(folder.scores).to_pylist()
    assert [(row["record"], row["response"]) for row in rows] == [
        (i, side) for i in range(RECORDS) for side in ("chosen", "rejected")
    ]
    tokenizer, model = AutoTokenizer.from_pretrained(judge), AutoModelForSequenceClassification.from_pretrained(judge)
    pairs = list(toyworld.records("toy-test"))
    for row in rows[::13]:
        turns = [("user", pairs[row["record"]]["prompt"]), ("assistant", pairs[row["record"]][row["response"]])]
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert row["reward:theirs"] == pytest.approx(model(ids).logits.item(), abs=1e-4)
    found = read_scores(folder)["reward_models"]
    assert found["truth"]["accuracy"]["accuracy"] == 1
    assert sum(part["records"] for part in found["theirs"]["subsets"].values()) == RECORDS
    assert read_status(folder.path).state == "finished"

    interrupted = config_of(tmp_path, judge, "interrupted")
    write, written = Pieces.write, []

    def write_two(pieces: Pieces, block: int, rows: list[dict[str, Any]]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(pieces, block, rows)
        written.append(pieces.path(block))

    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "write", write_two)
        with pytest.raises(KeyboardInterrupt):
            score(interrupted)
    half = ScoreFolder(tmp_path / "interrupted")
    assert not half.summary.exists()
    assert read_status(half.path).facts == {
        "records": RECORDS, "reward_models": ["theirs", "truth"], "scored_blocks": 1, "blocks": 3,
    }  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in written}
    score(interrupted)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert comparable(half) == comparable(folder)
    assert half.scores.read_bytes() == folder.scores.read_bytes()
