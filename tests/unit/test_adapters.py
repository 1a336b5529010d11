"""LoRA adapters as models to begin with: what they are merged into, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, random_examples
from safetensors.torch import load_file, save_file
from test_packing_parity import plain_logps
from test_reward_model import packed_rewards, plain_rewards, save_language_model, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.packing import pack
from orpo_ray.data.templates import read_text_rule, write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.models import find_policy
from orpo_ray.modeling.digests import frozen_digest
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.training.reference import load_reference
from orpo_ray.training.starting import with_merged_adapters

EXAMPLES = random_examples(seed=3, prompts=2)


def settings(model: str | Path, tmp_path: Path, *overrides: str, **objective: Any) -> TrainConfig:
    mapping = {
        "name": "r", "model": {"name_or_path": str(model), "dtype": "float32"}, "data": {"train": "toy"},
        "storage": {"path": str(tmp_path / "runs")}, "objective": {"name": "orpo", **objective},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


def adapted(
    folder: Path, base: Path, family: str = "llama-grouped-query", *, tokens: int = 0, seed: int = 1, **options: Any
) -> PreTrainedModel:
    """Save an adapter that does something over a base that is made where it is not there; returns its own model.

    `tokens`: that are added before it is trained.
    """
    if not base.is_dir():
        save_language_model(base, FAMILIES[family], pad_token="<pad>")
    classifies = options.get("task_type") == "SEQ_CLS"
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    network = auto.from_pretrained(base, **({"num_labels": 1, "pad_token_id": 1} if classifies else {}))
    if tokens:
        network.resize_token_embeddings(network.config.vocab_size + tokens)
    torch.manual_seed(seed)
    wanted = {"r": 3, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = peft.get_peft_model(network, peft.LoraConfig(**wanted | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return model.eval()


def tuned(model: PreTrainedModel) -> torch.Tensor:
    """Log-prob sums of a prompt and its continuations by plain forwards."""
    with torch.no_grad():
        return torch.stack([plain_logps(model, example) for example in EXAMPLES]).flatten()


def packed(config: TrainConfig) -> torch.Tensor:
    with torch.no_grad():
        return load_policy(config.model, seed=0).eval()(pack(EXAMPLES, score_prompts=True))


def told(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What peft adapts, and the one linear family whose weights lie the other way round.
KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "every linear layer": {"target_modules": "all-linear", "lora_alpha": 5},
    "DoRA, scaled by the root of the rank": {"use_dora": True, "use_rslora": True},
    "biases": {"bias": "all", "family": "opt-pre-norm"},
    "Conv1D": {"family": "gpt2", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "embeddings beside": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied embeddings, parted": {"family": "opt-pre-norm", "modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings by LoRA": {"target_modules": ["q_proj", "embed_tokens"]},
    "tied embeddings by LoRA": {"family": "opt-pre-norm", "target_modules": ["q_proj", "embed_tokens"]},
    "single tokens": {"trainable_token_indices": [5, 7]},
    "single tokens, tied": {"family": "opt-pre-norm", "trainable_token_indices": [5, 7]},
    "as it was drawn": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_what_peft_computes(kind: str, tmp_path: Path) -> None:
    options = dict(KINDS[kind])
    expected = tuned(
        adapted(tmp_path / "adapter", tmp_path / "base", options.pop("family", "llama-grouped-query"), **options)
    )
    config = settings(tmp_path / "adapter", tmp_path)
    starting = with_merged_adapters(config)
    torch.testing.assert_close(packed(starting), expected, rtol=0, atol=2e-3)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert (tuned(base) - expected).abs().max() > 0.05
    assert starting.model.model_copy(update={"name_or_path": config.model.name_or_path}) == config.model
    evaluated = find_policy("a", str(tmp_path / "adapter"), config.cache_dir)
    assert str(evaluated.folder) == starting.model.name_or_path
    assert with_merged_adapters(starting) is starting
    parted = "tied embeddings" in kind
    assert AutoConfig.from_pretrained(evaluated.folder).tie_word_embeddings == (
        AutoConfig.from_pretrained(tmp_path / "base").tie_word_embeddings and not parted
    )


def test_every_key_that_names_a_model_may_name_an_adapter(tmp_path: Path) -> None:
    mine, other = (
        tuned(adapted(tmp_path / name, tmp_path / "base", seed=seed)) for name, seed in (("mine", 1), ("other", 2))
    )
    asked = settings(tmp_path / "mine", tmp_path, name="dpo", reference=str(tmp_path / "other"))
    starting = with_merged_adapters(asked)
    torch.testing.assert_close(packed(starting), mine, rtol=0, atol=2e-3)
    with torch.no_grad():
        reference = load_reference(starting, torch.device("cpu"))(pack(EXAMPLES, score_prompts=True))
    torch.testing.assert_close(reference, other, rtol=0, atol=2e-3)
    own = with_merged_adapters(settings(tmp_path / "mine", tmp_path, name="dpo"))
    assert own.objective == settings(tmp_path / "mine", tmp_path, name="dpo").objective


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_a_reward_model_starts_from_either_kind(task: str, tmp_path: Path) -> None:
    model = adapted(tmp_path / "adapter", tmp_path / "base", task_type=task)
    config = settings(tmp_path / "adapter", tmp_path, name="reward")
    network = load_reward_model(with_merged_adapters(config).model, seed=0).eval()
    if task == "SEQ_CLS":
        with torch.no_grad():
            expected = plain_rewards(model, EXAMPLES)
            torch.testing.assert_close(packed_rewards(network, EXAMPLES), expected, rtol=0, atol=1e-4)
        refused = told(lambda: with_merged_adapters(settings(tmp_path / "adapter", tmp_path)))
        assert refused.endswith("it is one for the task SEQ_CLS, not for a language model")
    else:
        weight = network.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
        merged = model.merge_and_unload().get_parameter("model.layers.0.self_attn.q_proj.weight")
        torch.testing.assert_close(weight, merged)


def test_adapters_go_on_top_and_rest_on_base_and_adapter_both(tmp_path: Path) -> None:
    """A checkpoint of adapters holds the digest of what is below them."""

    def frozen() -> str | None:
        return frozen_digest(load_policy(with_merged_adapters(config).model, seed=0).model)

    config = settings(tmp_path / "adapter", tmp_path, "model.lora.rank=2")
    expected = tuned(adapted(tmp_path / "adapter", tmp_path / "base"))
    starting = with_merged_adapters(config)
    torch.testing.assert_close(packed(starting), expected, rtol=0, atol=2e-3)
    before = frozen()
    assert before == frozen()
    adapted(tmp_path / "adapter", tmp_path / "base", seed=2)
    retrained = frozen()
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    assert len({before, retrained, frozen()}) == 3


@pytest.mark.parametrize("own", [False, True])
def test_it_is_spoken_to_as_its_folder_says(own: bool, tmp_path: Path) -> None:
    adapted(tmp_path / "adapter", tmp_path / "base")
    if own:
        spoken = tokenizer()
        spoken.chat_template = NAMED_TEMPLATES["chatml"]
        spoken.save_pretrained(tmp_path / "adapter")
        write_text_rule(tmp_path / "adapter", True)
    config = settings(tmp_path / "adapter", tmp_path)
    starting = with_merged_adapters(config)
    for model in (config.model, starting.model):  # `orpo-ray data` merges nothing
        found = load_tokenizer(model)
        assert found.chat_template == (NAMED_TEMPLATES["chatml"] if own else None)
    assert read_text_rule(Path(starting.model.name_or_path)) == own


EMBEDDINGS = ["embed_tokens", "lm_head"]


class TestAddedTokens:
    @pytest.mark.parametrize(
        "options", [{"modules_to_save": EMBEDDINGS}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, {}]
    )
    def test_the_model_is_as_large_as_the_adapters_tokenizer_says(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        """Where embeddings were trained, or saved because there are more of them."""
        model = adapted(tmp_path / "adapter", tmp_path / "base", tokens=3, **options)
        added = tokenizer(additional_special_tokens=["<new>"])
        added.save_pretrained(tmp_path / "adapter")
        starting = with_merged_adapters(settings(tmp_path / "adapter", tmp_path))
        network = AutoModelForCausalLM.from_pretrained(starting.model.name_or_path).eval()
        assert "<new>" in load_tokenizer(starting.model).get_vocab()
        ids = torch.tensor([[5, 6, 97, 98, 99, 7]])  # those of the added rows, too
        with torch.no_grad():
            torch.testing.assert_close(network(ids).logits, model(ids).logits, rtol=0, atol=1e-4)

    def test_without_a_tokenizer_it_is_told_what_does_not_fit(self, tmp_path: Path) -> None:
        adapted(tmp_path / "adapter", tmp_path / "base", tokens=3, modules_to_save=EMBEDDINGS)
        found = told(lambda: with_merged_adapters(settings(tmp_path / "adapter", tmp_path)))
        assert found.startswith(f"model.name_or_path: the adapter {tmp_path}/adapter cannot be merged into its base")
        assert "holds embeddings of 100 tokens, and its base has 97" in found
        assert "its folder holds no tokenizer" in found


def deeper_base(folder: Path) -> None:
    """An adapter of two layers named over a base of one."""
    config = copy.deepcopy(FAMILIES["llama-grouped-query"])
    config.num_hidden_layers = 1
    shutil.rmtree(folder.parent / "base")
    save_language_model(folder.parent / "base", config, pad_token="<pad>")


def wider_base(folder: Path) -> None:
    config = copy.deepcopy(FAMILIES["llama-grouped-query"])
    config.hidden_size = 64
    shutil.rmtree(folder.parent / "base")
    save_language_model(folder.parent / "base", config, pad_token="<pad>")


def prompt_tuning(folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(folder.parent / "base")
    model = peft.get_peft_model(network, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.peft_config["default"].base_model_name_or_path = str(folder.parent / "base")
    shutil.rmtree(folder)
    model.save_pretrained(folder)


def activated(folder: Path) -> None:
    shutil.rmtree(folder)
    adapted(folder, folder.parent / "base", alora_invocation_tokens=[5])


def repeating(folder: Path) -> None:
    shutil.rmtree(folder)
    adapted(folder, folder.parent / "base", layer_replication=[[0, 2], [1, 2]])


def over_an_adapter(folder: Path) -> None:
    file = folder / "adapter_config.json"
    shutil.copytree(folder, folder.parent / "below")
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(folder.parent / "below")})
    )


def no_base(folder: Path) -> None:
    shutil.rmtree(folder.parent / "base")


REFUSED: dict[Callable[[Path], None], str] = {
    deeper_base: "its files hold what has no place in its base, such as base_model.model.model.layers.1.",
    wider_base: "size mismatch for base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
    prompt_tuning: "peft_type is 'PROMPT_TUNING', and only LORA is supported",
    activated: "aLoRA",
    repeating: "it repeats layers of its base (layer_replication), which is not supported",
    over_an_adapter: "below: holds an adapter (adapter_config.json); name its merged model, or its base",
    no_base: "base: no such folder (a model is a run folder, a folder, or a Hub id); it is the base of the adapter",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("key", ["model.name_or_path", "objective.reference"])
def test_what_cannot_be_merged_is_refused_with_its_reason(
    change: Callable[[Path], None], key: str, tmp_path: Path
) -> None:
    adapted(tmp_path / "adapter", tmp_path / "base")
    change(tmp_path / "adapter")
    reference = {"name": "dpo", "reference": str(tmp_path / "adapter")} if key == "objective.reference" else {}
    config = settings("toy" if reference else tmp_path / "adapter", tmp_path, **reference)
    found = told(lambda: with_merged_adapters(config))
    assert found.startswith(f"{key}: ")
    assert str(tmp_path / "adapter") in found
    assert REFUSED[change] in found
    assert found.removeprefix(key) == told(
        lambda: find_policy("x", str(tmp_path / "adapter"), tmp_path / "cache")
    ).removeprefix("models.x")


def test_of_the_hub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "hub" / "models--somebody--adapter"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "v2").write_text("1" * 40)
    expected = tuned(adapted(place / "snapshots" / ("1" * 40), tmp_path / "base"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, revision in (("somebody/adapter@v2", []), ("somebody/adapter", ["model.revision=v2"])):
        starting = with_merged_adapters(settings(name, tmp_path, *revision))
        torch.testing.assert_close(packed(starting), expected, rtol=0, atol=2e-3)
    for name in ("somebody/nothing", "somebody/adapter", "nobody", "toy"):
        config = settings(name, tmp_path)
        assert with_merged_adapters(config) is config


def test_a_run_names_the_adapter_and_not_where_it_was_merged(tmp_path: Path) -> None:
    adapted(tmp_path / "adapter", tmp_path / "base")
    config = settings(tmp_path / "adapter", tmp_path, "model.lora.rank=2")
    assert with_merged_adapters(config) != config
    assert json.loads(json.dumps(config.for_a_file()))["model"]["name_or_path"] == str(tmp_path / "adapter")
