"""A model is what its files say: nothing is drawn anew, it is of the revision asked for, and known by all of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from test_reward_model import named, save_language_model
from transformers import AutoModelForSequenceClassification

from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.reward import load_reward_model


def without(folder: Path, *names: str) -> None:
    """Take weights out of a model's file."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if name not in names}, file, {"format": "pt"})


def with_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


class TestMissing:
    @pytest.mark.parametrize(
        ("name", "lost", "told"),
        [
            ("opt-pre-norm", ["model.decoder.layers.1.fc1.weight"], "model.decoder.layers.1.fc1.weight"),
            ("llama-grouped-query", ["lm_head.weight"], "lm_head.weight"),
            ("llama-grouped-query", [f"model.layers.{i}.mlp.{k}_proj.weight" for i in (0, 1) for k in ("up", "gate")],
             "model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight, "
             "model.layers.1.mlp.gate_proj.weight (4 in all)"),
            ("gpt2", ["transformer.wte.weight"], "lm_head.weight, transformer.wte.weight"),
        ],
    )  # fmt: skip
    def test_a_policy_whose_files_lack_weights_is_refused(
        self, name: str, lost: list[str], told: str, tmp_path: Path
    ) -> None:
        """transformers draws them anew, unseeded, and goes on: two loads would differ."""
        save_language_model(tmp_path, FAMILIES[name])
        load_policy(named(tmp_path), seed=0)
        without(tmp_path, *lost)
        with pytest.raises(UserError) as caught:
            load_policy(named(tmp_path), seed=0)
        assert str(caught.value) == f"{tmp_path}: its files lack weights of the model, such as {told}"
        assert load_policy(named(tmp_path, init="random"), seed=0), "where no weights are asked for, none are missed"

    def test_a_classifier_without_its_head_is_refused_and_a_language_model_gets_one(self, tmp_path: Path) -> None:
        config = copy.deepcopy(FAMILIES["opt-pre-norm"])
        config.num_labels = 1
        save_language_model(tmp_path, config, AutoModelForSequenceClassification)
        without(tmp_path, "score.weight")
        with pytest.raises(UserError, match=r"lack weights of the model, such as score\.weight$"):
            load_reward_model(named(tmp_path), seed=0)
        with_config(tmp_path, architectures=["OPTForCausalLM"])
        assert load_reward_model(named(tmp_path), seed=0)

    @pytest.mark.parametrize("held", ["input", "output"])
    def test_tied_weights_need_not_be_there_twice(self, held: str, tmp_path: Path) -> None:
        model = save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
        weights = load_file(tmp_path / "model.safetensors")
        assert "lm_head.weight" not in weights
        if held == "output":
            weights["lm_head.weight"] = weights.pop("model.decoder.embed_tokens.weight")
            save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        policy = load_policy(named(tmp_path), seed=0)
        assert torch.equal(policy.model.get_input_embeddings().weight, model.get_input_embeddings().weight)
        without(tmp_path, "lm_head.weight", "model.decoder.embed_tokens.weight")
        with pytest.raises(UserError, match="its files lack weights of the model, such as"):
            load_policy(named(tmp_path), seed=0)

    def test_another_shape_is_told_in_one_line(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
        with_config(tmp_path, vocab_size=96)
        with pytest.raises(UserError) as caught:
            load_policy(named(tmp_path), seed=0)
        assert "its files hold lm_head.weight in the shape [97, 32], and its config.json says [96, 32]" in str(
            caught.value
        )

    def test_a_damaged_file_is_told_in_one_line(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"the model cannot be loaded: ") as caught:
            load_policy(named(tmp_path), seed=0)
        assert "\n" not in str(caught.value)

    def test_what_the_model_does_not_take_is_said_but_for_another_head(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
        weights = load_file(tmp_path / "model.safetensors")
        save_file({**weights, "score.weight": torch.ones(1, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
        said: list[str] = []
        load_policy(named(tmp_path), seed=0, warn=said.append)
        load_reward_model(named(tmp_path), seed=0, warn=said.append)
        assert said == []
        with_config(tmp_path, num_hidden_layers=1)
        load_policy(named(tmp_path), seed=0, warn=said.append)
        [line] = said
        assert "its files hold weights that the model does not take, such as model.layers.1." in line
        assert line.endswith("(9 in all)") and "\n" not in line
