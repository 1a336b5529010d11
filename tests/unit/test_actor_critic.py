"""What is counted and kept of a policy with a critic beside it (issue 19)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from live_models import llama, opt, save
from peft import PeftModel
from rollout_runs import settings
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from orpo_ray.config import LoraConfig, ModelConfig
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.modeling.critic import ActorCritic
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.memory import LEVELS, activation_bytes
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.export import export_adapter, export_model


def networks(folder: Path, lora: LoraConfig | None = None) -> ActorCritic:
    """A policy of OPT, and a critic of Llama with fewer heads of keys and values."""
    save(folder / "policy", opt())
    save(folder / "critic", llama(tie_word_embeddings=False), seed=1, kind=AutoModelForSequenceClassification)
    model = {name: ModelConfig(name_or_path=str(folder / name), dtype="float32") for name in ("policy", "critic")}
    policy = load_policy(model["policy"].model_copy(update={"lora": lora}), seed=0)
    return ActorCritic(policy, load_reward_model(model["critic"], seed=0))


def batch() -> PackedBatch:
    prompt, first, second = (np.arange(length, dtype=np.int32) + 5 for length in (20, 7, 11))
    return pack([[prompt, first, second]], score_prompts=False)


def test_operations_and_memory_are_those_of_both(tmp_path: Path) -> None:
    both = networks(tmp_path)
    policy = load_policy(ModelConfig(name_or_path=str(tmp_path / "policy"), dtype="float32"), seed=0)
    apart = [policy, both.critic]
    assert StepFlops.of(both)(batch()) == sum(StepFlops.of(part)(batch()) for part in apart)
    assert StepFlops.of(both).per_visible_pair == sum(StepFlops.of(part).per_visible_pair for part in apart)
    needed = activation_bytes(both, 1000)
    counted = [activation_bytes(part, 1000) for part in apart]
    assert needed == {level: sum(part[level] for part in counted) for level in LEVELS}
    assert needed["none"] > needed["selective"] >= needed["full"] > counted[0]["full"]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["all weights", "adapters"])
def test_what_is_exported_is_the_policy_alone(lora: LoraConfig | None, tmp_path: Path) -> None:
    both = networks(tmp_path, lora).train()
    config = settings(tmp_path / "run")
    engine = TorchEngine(both, config.optim)
    scored = engine.forward(batch(), by_token=True)
    engine.backward((scored[:, 0] - scored[:, 1]).sum(), last=True)
    engine.step(1e-2)
    weights = engine.weights()
    assert weights is not None and not any("critic" in name or "score" in name for name in weights)
    moved = {piece.name for piece in engine.pieces() if piece.exp_avg.any()}
    assert any(name.startswith("critic.") for name in moved), "the critic is trained, adapters or not"
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "policy")))
    out = tmp_path / "model"
    exported = merged_weights(both.model, dict(weights))
    export_model(out, both.model, dict(exported), tokenizer, config, {"step": 1}, None, "of a test")
    with torch.no_grad():
        expected = both.eval()(batch())
        alone = load_policy(ModelConfig(name_or_path=str(out), dtype="float32"), seed=0).eval()
        torch.testing.assert_close(alone(batch()), expected, atol=1e-4, rtol=0)
    if lora is not None:
        adapter = tmp_path / "adapter"
        own = config.model_copy(update={"model": ModelConfig(name_or_path=str(tmp_path / "policy"), lora=lora)})
        export_adapter(adapter, both.model, weights, exported, tokenizer, own)
        assert all(".lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        held = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        for name, weight in held.state_dict().items():
            torch.testing.assert_close(merged.state_dict()[name], weight, atol=1e-6, rtol=0)
