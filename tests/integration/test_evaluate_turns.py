"""Two turns through real actors: an engine that answers its own conversation, answers from elsewhere, resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.templates import write_text_rule
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.store import EvaluationFolder

ASKED = [record["prompt"].strip() for record in list(toyworld.records("toy-test"))[:80]]
QUESTIONS = [
    {"question_id": i, "category": ["math", "writing"][i % 2], "turns": [ASKED[2 * i], ASKED[2 * i + 1]]}
    for i in range(40)
]


def save(folder: Path, auto: Any, **changes: Any) -> str:
    config = toyworld.model_config()
    config.num_hidden_layers = 1
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():  # so that no choice is a near-tie
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer = toyworld.tokenizer()
    tokenizer.chat_template = NAMED_TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder)
    write_text_rule(folder, through_template=True)
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    storage = tmp_path_factory.mktemp("turns")
    source, outputs = storage / "questions.jsonl", storage / "outputs.jsonl"
    source.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    outputs.write_text("".join(
        json.dumps({"question_id": q["question_id"], "choices": [{"index": 0, "turns": ["Yes.", "No."]}]}) + "\n"
        for q in QUESTIONS
    ))  # fmt: skip
    mapping = {
        "name": "turns", "models": {"a": save(storage / "a", AutoModelForCausalLM), "b": str(outputs)},
        "prompts": {"source": str(source), "turns": 2, "category": "category"},
        "reward_models": {"r": save(storage / "r", AutoModelForSequenceClassification, num_labels=1, pad_token_id=1)},
        "sampling": {"max_tokens": 6, "rounds": 2, "by_category": {"math": {"temperature": 0, "max_tokens": 9}}},
        "generation": {"engine": "transformers"}, "scaling": {"generators": 1, "scorers": 1}, "embedder": None,
        "storage": {"path": str(storage / "runs")},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, config: EvaluationConfig) -> EvaluationFolder:
    return evaluate(config)


def test_both_turns_are_there_and_each_category_is_drawn_in_its_way(
    finished: EvaluationFolder, config: EvaluationConfig
) -> None:
    rows = [row for row in pq.read_table(finished.results).to_pylist() if row["model"] == "a"]
    assert len(rows) == 40 * 2 * 2 and all(row["text"] is not None for row in rows)
    texts = {(row["prompt"], row["turn"], row["round"]): row for row in rows}
    for prompt, turn, round in texts:
        row, most = texts[prompt, turn, round], 9 if prompt % 2 == 0 else 6
        assert row["tokens"] == most if row["ended"] == "length" else row["tokens"] <= most
        if prompt % 2 == 0:
            assert row["text"] == texts[prompt, turn, 0]["text"], "greedy: every round says the same"
    assert any(texts[i, 1, 0]["text"] != texts[i, 1, 1]["text"] for i in range(1, 40, 2))
    assert all((row["reward:r"] is not None) == (row["turn"] == 2) for row in rows)


def test_the_second_answer_is_the_model_s_to_the_whole_conversation(
    finished: EvaluationFolder, config: EvaluationConfig
) -> None:
    folder = config.asked["a"].path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = {(row["prompt"], row["turn"]): row for row in pq.read_table(finished.results).to_pylist()
            if (row["model"], row["round"]) == ("a", 0)}  # fmt: skip
    for prompt in range(0, 40, 4):
        said = [ASKED[2 * prompt], rows[prompt, 1]["text"], ASKED[2 * prompt + 1]]
        messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(said)]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        tokens = rows[prompt, 2]["tokens"]
        drawn = model.generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=1)[0, ids.shape[1] :]
        assert tokenizer.decode(drawn, skip_special_tokens=True).strip() == rows[prompt, 2]["text"].strip()


@pytest.mark.parametrize("lost", ["turn_2/responses/*/00001.parquet", "turn_2/rewards/*/00000.parquet", "responses/*"])
def test_what_is_lost_is_made_again_to_the_same_bytes(
    finished: EvaluationFolder, config: EvaluationConfig, lost: str
) -> None:
    before = finished.winrates.read_bytes(), finished.results.read_bytes()
    for path in finished.path.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finished.winrates.unlink()
    evaluate(config)
    assert (finished.winrates.read_bytes(), finished.results.read_bytes()) == before
