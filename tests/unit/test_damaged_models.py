"""Damage to the files of a model or an adapter: one plain line that names the file, for every loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_one_line
from test_damage import NO_OBJECTS, refused, write
from test_evaluation_models import save_toy
from test_security import LOADERS, adapter, save_encoder

from orpo_ray.data.templates import read_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.models import find_policy

FILES = ["config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
KINDS = ["policy", "reward model", "tokenizer", "evaluated policy", "evaluated reward model", "embedder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_of_a_model_that_is_no_object(file: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_encoder(folder) if kind == "embedder" else save_toy(folder, labels=1 if "reward" in kind else None)
    for text in NO_OBJECTS:
        write(folder / file, text)
        refused(lambda: LOADERS[kind](str(folder), tmp_path / "cache"), f"{folder}/{file}: ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_size": "abc"}), ("config.json", {"vocab_size": []}),
        ("config.json", {"max_position_embeddings": "many"}), ("config.json", {"architectures": [3]}),
        ("config.json", {"model_type": 3}), ("config.json", {"model_type": []}), ("config.json", {"dtype": {"a": 1}}),
        ("config.json", {"num_hidden_layers": -1}), ("config.json", {"id2label": 3}),
        ("tokenizer_config.json", {"tokenizer_class": 3}), ("tokenizer_config.json", {"added_tokens_decoder": 3}),
        ("tokenizer_config.json", {"eos_token": 3}), ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer.json", {"model": 3}),
    ],
)  # fmt: skip
def test_a_file_of_a_model_with_odd_values(file: str, change: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """It loads, or it is told."""
    folder = tmp_path / "model"
    save_encoder(folder) if kind == "embedder" else save_toy(folder, labels=1 if "reward" in kind else None)
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **change}))
    try:
        LOADERS[kind](str(folder), tmp_path / "cache")
    except UserError as error:
        assert_one_line(error, str(folder))


@pytest.mark.parametrize("kind", ["policy", "reward model", "evaluated policy", "evaluated reward model", "embedder"])
def test_an_index_that_is_none(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_encoder(folder) if kind == "embedder" else save_toy(folder, labels=1 if "reward" in kind else None)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for text in (*NO_OBJECTS, "{}", '{"metadata": {}, "weight_map": []}', '{"metadata": {}, "weight_map": {}}',
                 '{"metadata": {}, "weight_map": {"a": 3}}', '{"metadata": 3, "weight_map": {}}'):  # fmt: skip
        write(index, text)
        refused(lambda: LOADERS[kind](str(folder), tmp_path / "cache"), f"{index}: ")


def test_an_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", save_toy(tmp_path / "base"))
    find = lambda: find_policy("x", str(folder), tmp_path / "cache")  # noqa: E731
    file = folder / "adapter_config.json"
    sound = file.read_text()
    for text in (*NO_OBJECTS, "{}", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": "x"}'):
        write(file, text)
        assert refused(find, f"{file}: ").startswith("models.x: ")
    for change in ({"r": "abc"}, {"r": -1}, {"target_modules": 3}, {"lora_alpha": []}, {"task_type": 3}):
        file.write_text(json.dumps({**json.loads(sound), **change}))
        refused(find, f"models.x: the adapter {folder} cannot be merged into its base {tmp_path}/base: ")
    file.write_text(sound)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refused(find, f"models.x: {weights}: not a whole safetensors file")


@pytest.mark.parametrize("text", [*NO_OBJECTS, "{}", '{"chat_template_for_text": 1}'])
def test_the_rule_of_text(text: str, tmp_path: Path) -> None:
    write(tmp_path / "orpo_ray.json", text)
    refused(lambda: read_text_rule(tmp_path), f"{tmp_path}/orpo_ray.json: ")
