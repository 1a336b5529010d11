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
from test_reward_model import named, save_language_model, tokenizer
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from orpo_ray.config import ModelConfig, TrainConfig, parse_config
from orpo_ray.config.identity import digest
from orpo_ray.errors import UserError
from orpo_ray.evaluation.embedding import load_embedder
from orpo_ray.inference.models import find_policy, find_reward_model
from orpo_ray.modeling.loading import load_config, load_policy, load_tokenizer
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.training.export import export_adapter, export_model
from orpo_ray.training.reference import load_reference


def loaded(file: Path) -> dict[str, torch.Tensor]:
    """Tensors that are not of the file any more, which may be written over."""
    return {name: weight.clone() for name, weight in load_file(file).items()}


def without(folder: Path, *names: str) -> None:
    """Take weights out of a model's file."""
    file = folder / "model.safetensors"
    weights = loaded(file)
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
        weights = loaded(tmp_path / "model.safetensors")
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
        with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file: ") as caught:
            load_policy(named(tmp_path), seed=0)
        assert "\n" not in str(caught.value)

    def test_what_the_model_does_not_take_is_said_but_for_another_head(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
        weights = loaded(tmp_path / "model.safetensors")
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


class TestEvaluated:
    def test_models_whose_files_lack_weights_are_refused_before_an_engine_loads_them(self, tmp_path: Path) -> None:
        """vLLM 0.32 loads them, and computes with what is in memory there."""
        save_language_model(tmp_path / "policy", FAMILIES["llama-grouped-query"])
        config = copy.deepcopy(FAMILIES["opt-pre-norm"])
        config.num_labels = 1
        save_language_model(tmp_path / "judge", config, AutoModelForSequenceClassification)
        find_policy("a", str(tmp_path / "policy"), tmp_path / "cache")
        find_reward_model("r", str(tmp_path / "judge"), "auto")
        without(tmp_path / "policy", "model.layers.1.mlp.up_proj.weight")
        without(tmp_path / "judge", "score.weight")
        with pytest.raises(UserError, match=r"^models\.a: .*policy: its files lack weights .*layers\.1\.mlp\.up_proj"):
            find_policy("a", str(tmp_path / "policy"), tmp_path / "cache")
        with pytest.raises(UserError, match=r"^reward_models\.r: .*judge: its files lack weights .*score\.weight"):
            find_reward_model("r", str(tmp_path / "judge"), "auto")
        file = tmp_path / "policy" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"^models\.a: "):
            find_policy("a", str(tmp_path / "policy"), tmp_path / "cache")


def hub_model(cache: Path, **revisions: int) -> str:
    """A Hub's cache with a policy of as many layers as each revision says; returns its id."""
    name, place = "somebody/model", cache / "models--somebody--model"
    (place / "refs").mkdir(parents=True)
    for i, (revision, layers) in enumerate(revisions.items()):
        commit = f"{i:040x}"
        (place / "refs" / revision).write_text(commit)
        save_language_model(place / "snapshots" / commit, _layers(layers))
        if revision == "v2":
            added = tokenizer(additional_special_tokens=["<new>"])
            added.save_pretrained(place / "snapshots" / commit)
    return name


def _layers(number: int) -> PretrainedConfig:
    config = copy.deepcopy(FAMILIES["opt-pre-norm"])
    config.num_hidden_layers, config.vocab_size = number, 98
    return config


class TestRevision:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        return hub_model(tmp_path / "hub", main=1, v2=2)

    @pytest.mark.parametrize(
        ("settings", "layers"),
        [({}, 1), ({"revision": "main"}, 1), ({"revision": "v2"}, 2), ({"name_or_path": "somebody/model@v2"}, 2),
         ({"revision": f"{1:040x}"}, 2)],
    )  # fmt: skip
    def test_configuration_tokenizer_and_weights_are_of_the_revision(
        self, settings: dict[str, str], layers: int, hub: str
    ) -> None:
        model = named(Path(hub), **settings)
        assert load_config(model).num_hidden_layers == layers
        assert ("<new>" in load_tokenizer(model).get_vocab()) == (layers == 2)
        for network in (load_policy(model, seed=0).model, load_reward_model(model, seed=0).model):
            assert len(network.base_model.decoder.layers) == layers

    def test_it_is_the_models_own_and_not_of_another_tokenizer_or_reference(self, hub: str) -> None:
        """`main` has the older tokenizer, and a reference names its own revision."""
        assert "<new>" not in load_tokenizer(ModelConfig(name_or_path="toy", tokenizer=hub)).get_vocab()
        assert "<new>" in load_tokenizer(ModelConfig(name_or_path="toy", tokenizer=f"{hub}@v2")).get_vocab()
        for reference, layers in ((None, 2), (hub, 1), (f"{hub}@v2", 2)):
            mapping = {
                "name": "r", "model": {"name_or_path": hub, "revision": "v2"}, "data": {"train": "toy"},
                "objective": {"name": "dpo", "reference": reference},
            }  # fmt: skip
            policy = load_reference(parse_config(mapping, [], "test"), torch.device("cpu"))
            assert len(policy.model.base_model.decoder.layers) == layers, reference

    def test_an_evaluation_and_an_embedder_take_it_behind_the_id(self, hub: str, tmp_path: Path) -> None:
        folders = [find_policy("a", name, tmp_path / "cache").folder.name for name in (hub, f"{hub}@v2")]
        assert folders == [f"{0:040x}", f"{1:040x}"]
        with pytest.raises(UserError, match=r"models\.a: somebody/model@v3 is no folder here, and the Hub"):
            find_policy("a", f"{hub}@v3", tmp_path / "cache")
        with pytest.raises(UserError, match=r"somebody/model@v2: a model of type opt is no encoder"):
            load_embedder(f"{hub}@v2")

    def test_one_that_is_not_there_and_one_of_a_folder_are_refused(self, hub: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^somebody/model@v3: the model cannot be loaded: "):
            load_policy(named(Path(hub), revision="v3"), seed=0)
        save_language_model(tmp_path / "here", FAMILIES["opt-pre-norm"])
        with pytest.raises(UserError, match=r"^model\.revision: .*here is a folder, which has no revisions"):
            load_tokenizer(named(tmp_path / "here", revision="v2"))
        for mapping, told in (
            ({"name_or_path": "toy", "revision": "v2"}, "the embedded model has none"),
            ({"name_or_path": f"{hub}@v2", "revision": "v2"}, "names one too"),
        ):
            with pytest.raises(ValueError, match=told):
                ModelConfig.model_validate(mapping)

    def test_it_is_part_of_a_run_and_of_its_card_and_adapters(self, hub: str, tmp_path: Path) -> None:
        def config(*overrides: str) -> TrainConfig:
            mapping = {"name": "r", "model": {"name_or_path": hub, "lora": {"rank": 2}}, "data": {"train": "toy"}}
            return parse_config(mapping, [f"storage.path={tmp_path}", *overrides], "test")

        assert config().digest() != config("model.revision=v2").digest()
        dumped = config().for_a_file()
        del dumped["model"]["revision"]  # as a run has it that began before there was such a key
        assert digest(dumped) == config().digest()
        asked = config("model.revision=v2")
        network = load_policy(asked.model, seed=0).model
        weights, told = dict(network.state_dict()), {"step": 3, "eval_loss": 1.0}
        export_model(tmp_path / "m", network, weights, tokenizer(), asked, told, 9, "lowest eval loss")
        card = (tmp_path / "m" / "README.md").read_text()
        assert "base_model: somebody/model\n" in card and "| base model | `somebody/model@v2` (" in card
        export_adapter(tmp_path / "a", network, weights, merged_weights(network, weights), tokenizer(), asked)
        described = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        assert (described["base_model_name_or_path"], described["revision"]) == (hub, "v2")
        assert load_config(find_policy("a", str(tmp_path / "a"), tmp_path).settings).num_hidden_layers == 2
