"""Packed rewards, their gradients and their export equal plain, unpadded Hugging Face classifiers."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, VOCAB, _use_exact_norms, random_examples
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.reward import PackedRewardModel, centre, ensure_pad_token, load_reward_model

EOS = 2
# Their last norm has a bias; the others are RMSNorm families.
LAYER_NORM = {"opt-pre-norm", "opt-post-norm-projected", "phi", "gpt2"}


def classifier(config: PretrainedConfig, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """conftest's `build`, for the classification class of a family; the same weights on every call."""
    config = copy.deepcopy(config)
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.score.weight.mul_(3.0)
    model = model.to(dtype)
    if dtype == torch.float64:
        _use_exact_norms(model)
    return model.eval()


def plain_reward(model: PreTrainedModel, *parts: np.ndarray) -> Tensor:
    """The logit of one unpadded text."""
    return model(input_ids=torch.from_numpy(np.concatenate(parts)).long()[None]).logits[0, 0]


def plain_rewards(model: PreTrainedModel, examples: list[list[np.ndarray]]) -> Tensor:
    """`(prompts, K)`, a forward for each continuation."""
    return torch.stack([torch.stack([plain_reward(model, ids[0], part) for part in ids[1:]]) for ids in examples])


def packed_rewards(model: PackedRewardModel, examples: list[list[np.ndarray]]) -> Tensor:
    """`(prompts, K)`, all in one packed row."""
    return model(pack(examples, score_prompts=False)).view(len(examples), -1)[:, 1:]


@pytest.mark.parametrize("continuations", [1, 2, 4])
def test_rewards_equal_plain_forwards(family: PretrainedConfig, continuations: int) -> None:
    examples = random_examples(seed=continuations, prompts=4, continuations=continuations)
    model = PackedRewardModel(classifier(family, NAME))
    with torch.no_grad():
        expected = plain_rewards(classifier(family, "eager"), examples)
        rewards = model(pack(examples, score_prompts=True)).view(4, 1 + continuations)
    assert rewards.dtype == torch.float32
    assert torch.equal(rewards[:, 0], torch.zeros(4))
    assert expected.std() > 0.05  # or nothing would be told apart
    torch.testing.assert_close(rewards[:, 1:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_plain_forwards_in_float64(family: PretrainedConfig, checkpointing: bool) -> None:
    """Of the Bradley-Terry loss; errors are relative to the largest gradient of the model."""
    examples = random_examples(seed=7, prompts=3)
    plain = classifier(family, "sdpa", torch.float64)
    packed = PackedRewardModel(classifier(family, NAME, torch.float64))
    if checkpointing:
        packed.model.gradient_checkpointing_enable({"use_reentrant": False})
        packed.train()
    for rewards in (plain_rewards(plain, examples), packed_rewards(packed, examples)):
        (-F.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    assert packed.model.score.weight.grad.abs().max() > 0
    for (name, expected), actual in zip(plain.named_parameters(), packed.model.parameters(), strict=True):
        if expected.grad is None:
            assert actual.grad is None, name
            continue
        assert (actual.grad - expected.grad).abs().max() <= 1e-9 * scale, name


def test_each_prompt_is_scored_as_alone() -> None:
    examples = random_examples(seed=5, prompts=6, continuations=3)
    model = PackedRewardModel(classifier(FAMILIES["mistral-window-shorter"], NAME))
    with torch.no_grad():
        alone = torch.cat([packed_rewards(model, [example]) for example in examples])
        torch.testing.assert_close(packed_rewards(model, examples), alone, rtol=1e-5, atol=1e-5)


def test_rewards_of_a_bfloat16_model_are_not_rounded_to_it() -> None:
    model = PackedRewardModel(classifier(FAMILIES["opt-pre-norm"], NAME, torch.bfloat16))
    rewards = packed_rewards(model, random_examples(seed=1, prompts=8))
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16()).float().mean() > 0.8
    rewards.sum().backward()
    assert model.model.score.weight.grad.dtype == torch.bfloat16


class TestCentre:
    @pytest.mark.parametrize("gathered", [False, True])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_rewards_move_by_the_mean_in_plain_hugging_face_too(self, name: str, gathered: bool) -> None:
        """`gathered`: the weights to export are a state dict beside the model, as after ZeRO-3."""
        examples = random_examples(seed=3, prompts=4)
        model = PackedRewardModel(classifier(FAMILIES[name], NAME))
        weights = dict(model.model.state_dict()) if gathered else None
        with torch.no_grad():
            before = packed_rewards(model, examples)
            expected = before - before.mean()
            centre(model, float(before.mean()), weights)
            now = packed_rewards(model, examples)
            torch.testing.assert_close(now, before if gathered else expected, rtol=0, atol=0 if gathered else 1e-5)
            exported = classifier(FAMILIES[name], "eager")
            exported.load_state_dict(weights or model.model.state_dict())
            offset = getattr(model.model.config, "reward_offset", 0.0)
            torch.testing.assert_close(plain_rewards(exported, examples) - offset, expected, rtol=0, atol=1e-5)
        assert (offset == 0.0) == (name in LAYER_NORM)
        assert model.offset == (0.0 if gathered else offset)

    def test_a_second_centring_adds_to_the_first(self) -> None:
        examples = random_examples(seed=3, prompts=4)
        for name in ("gpt2", "qwen3"):
            model = PackedRewardModel(classifier(FAMILIES[name], NAME))
            with torch.no_grad():
                centre(model, 1.5)
                centre(model, float(packed_rewards(model, examples).mean()))
                assert abs(float(packed_rewards(model, examples).mean())) < 1e-6

    def test_opt_without_a_final_norm_keeps_an_offset(self) -> None:
        config = copy.deepcopy(FAMILIES["opt-pre-norm"])
        config._remove_final_layer_norm = True
        model = PackedRewardModel(classifier(config, NAME))
        centre(model, 0.75)
        assert model.offset == 0.75


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a word, `w3` … `w96`, as many as the models embed; BOS `<s>`, EOS `</s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<pad>", "</s>", *(f"w{i}" for i in range(3, VOCAB))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **special)


def save_language_model(
    folder: Path, config: PretrainedConfig, auto: type = AutoModelForCausalLM, **special: str
) -> PreTrainedModel:
    torch.manual_seed(1)
    model: PreTrainedModel = auto.from_config(copy.deepcopy(config))
    model.save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return model


def named(folder: Path, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"name_or_path": str(folder), "dtype": "float32", **settings})


def export(model: PackedRewardModel, source: Path, folder: Path) -> None:
    saved = AutoTokenizer.from_pretrained(source)
    ensure_pad_token(saved)
    model.model.save_pretrained(folder, state_dict=model.model.state_dict())
    saved.save_pretrained(folder)


class TestExport:
    @pytest.mark.parametrize(
        ("name", "padding"), [*((name, "eos") for name in FAMILIES), ("opt-pre-norm", "own"), ("gpt2", "none")]
    )
    def test_plain_hugging_face_gives_the_same_rewards(self, name: str, padding: str, tmp_path: Path) -> None:
        """Of single texts and of padded batches, for texts that end in EOS and for cut ones; and so do we."""
        config = copy.deepcopy(FAMILIES[name])
        special = {"own": {"pad_token": "<pad>"}, "eos": {"pad_token": "</s>"}, "none": {}}[padding]
        config.pad_token_id = {"own": 1, "eos": EOS, "none": None}[padding]
        save_language_model(tmp_path / "lm", config, **special)
        model = load_reward_model(named(tmp_path / "lm"), seed=3).eval()
        end = np.array([EOS], np.int32)
        ending = [[ids, np.append(first, end), second] for ids, first, second in random_examples(seed=2, prompts=3)]
        with torch.no_grad():
            centre(model, float(packed_rewards(model, ending).mean()))
            expected = packed_rewards(model, ending)
        assert abs(float(expected.mean())) < 1e-6
        export(model, tmp_path / "lm", tmp_path / "reward")

        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
        assert loaded.config.architectures == [type(loaded).__name__]
        assert (loaded.config.num_labels, loaded.config.id2label) == (1, {0: "reward"})
        assert loaded.config.problem_type == "regression"
        padded_by = AutoTokenizer.from_pretrained(tmp_path / "reward")
        assert padded_by.pad_token_id == loaded.config.pad_token_id == (1 if padding == "own" else VOCAB)
        assert len(padded_by) <= loaded.config.vocab_size
        offset = getattr(loaded.config, "reward_offset", 0.0)
        texts = [np.concatenate([e[0], part]).tolist() for e in ending for part in e[1:]]
        with torch.no_grad():
            torch.testing.assert_close(plain_rewards(loaded, ending) - offset, expected, rtol=0, atol=1e-5)
            batch = padded_by.pad({"input_ids": texts}, return_tensors="pt")
            assert (batch["attention_mask"] == 0).any()
            rewards = loaded(**batch).logits.view(3, 2) - offset
            torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
            again = load_reward_model(named(tmp_path / "reward"), seed=99).eval()
            torch.testing.assert_close(packed_rewards(again, ending), expected, rtol=0, atol=1e-6)

    def test_a_run_folder_is_its_model(self, tmp_path: Path) -> None:
        save_language_model(tmp_path / "lm", FAMILIES["opt-pre-norm"])
        model = load_reward_model(named(tmp_path / "lm"), seed=0)
        export(model, tmp_path / "lm", tmp_path / "run/model")
        again = load_reward_model(named(tmp_path / "run"), seed=1)
        for (name, weight), loaded in zip(model.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(weight, loaded), name


class TestLoading:
    @pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
    def test_a_language_model_keeps_its_trunk_and_gets_a_head_from_the_seed(
        self, auto: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        language_model = save_language_model(tmp_path, FAMILIES["opt-post-norm-projected"], auto, pad_token="<pad>")
        library = logging.getLogger("transformers")
        library.propagate, before = True, library.propagate
        try:
            models = [load_reward_model(named(tmp_path), seed=seed) for seed in (0, 0, 1)]
            assert "LOAD REPORT" not in caplog.text
            AutoModelForSequenceClassification.from_pretrained(tmp_path)
            assert "LOAD REPORT" in caplog.text  # what others load is still reported
        finally:
            library.propagate = before
        first, same, other = [model.model.score.weight for model in models]
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert first.shape == (1, 16)  # what project_out leaves, not hidden_size
        assert 0.5 < float(first.detach().std()) * 17**0.5 < 1.7
        trunk = language_model.base_model.state_dict()
        for name, weight in models[0].model.base_model.state_dict().items():
            assert torch.equal(weight, trunk[name]), name
        assert models[0].training

    def test_random_and_toy_models_are_functions_of_the_seed(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, FAMILIES["gpt2"])
        for model in (named(tmp_path, init="random"), ModelConfig(name_or_path="toy")):
            first, same, other = [list(load_reward_model(model, seed=seed).parameters()) for seed in (0, 0, 1)]
            assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
            assert not torch.equal(first[0], other[0])
            assert not torch.equal(first[-1], other[-1])

    def test_dropout_is_off_unless_kept(self) -> None:
        for keep in (False, True):
            model = load_reward_model(ModelConfig(name_or_path="toy", keep_dropout=keep), seed=0)
            assert (model.model.config.dropout > 0) == keep

    def test_gradient_checkpointing(self) -> None:
        toy = ModelConfig(name_or_path="toy", dtype="float32")
        plain, checkpointed = [load_reward_model(toy, seed=0) for _ in range(2)]
        set_recomputation(checkpointed, "full")
        for model in (plain, checkpointed):
            packed_rewards(model, random_examples(seed=1, prompts=2)).square().sum().backward()
        for (name, weight), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
            if weight.grad is not None:
                torch.testing.assert_close(other.grad, weight.grad, msg=name)

    def test_two_labels_are_refused(self, tmp_path: Path) -> None:
        config = copy.deepcopy(FAMILIES["opt-pre-norm"])
        config.num_labels = 2
        save_language_model(tmp_path, config, AutoModelForSequenceClassification)
        with pytest.raises(UserError, match=r"a classifier of 2 labels, but a reward model has one; start from"):
            load_reward_model(named(tmp_path), seed=0)
        assert load_reward_model(named(tmp_path, init="random"), seed=0).model.score.out_features == 1

    def test_missing_weights_are_refused(self, tmp_path: Path) -> None:
        """transformers would draw them anew and go on."""
        model = save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
        weights = model.state_dict()
        del weights["model.decoder.layers.1.fc1.weight"]
        model.save_pretrained(tmp_path, state_dict=weights)
        with pytest.raises(UserError, match=r"lack weights of the model, such as model\.decoder\.layers\.1\.fc1"):
            load_reward_model(named(tmp_path), seed=0)

    def test_pickled_weights_are_not_read(self, tmp_path: Path) -> None:
        model = save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds no weights in safetensors"):
            load_reward_model(named(tmp_path), seed=0)

    def test_classifiers_that_do_not_read_the_last_token_are_refused(self, tmp_path: Path) -> None:
        config = BertConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        save_language_model(tmp_path, config, AutoModel)
        with pytest.raises(UserError, match="BertForSequenceClassification has no linear score head"):
            load_reward_model(named(tmp_path, init="random"), seed=0)

    def test_architectures_without_a_classifier_are_refused(self, tmp_path: Path) -> None:
        from transformers import MambaConfig

        MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        with pytest.raises(UserError, match="cannot be built"):
            load_reward_model(named(tmp_path, init="random"), seed=0)
