"""Mixtures of experts: FLOPs by the experts that a token goes to, adapters, auxiliary losses, jitter."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import build, config_of
from test_reward_model import named, tokenizer

from orpo_ray.modeling.experts import shares
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.policy import PackedPolicy


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "deepseek_v3"])
def test_operations_are_those_of_the_experts_that_a_token_goes_to(name: str) -> None:
    """Two of four."""
    network = build(config_of(name))
    experts = {name: weight for name, weight in network.named_parameters() if ".experts." in name and weight.dim() > 2}
    assert experts and {shares(network, network.config)[name] for name in experts} == {0.5}
    sparse = StepFlops.of(PackedPolicy(network)).per_token
    dense = sum(6 * weight.numel() for weight in experts.values())
    others = sum(
        6 * weight.numel()
        for name, weight in network.named_parameters()
        if weight.dim() == 2 and name not in experts and "embed" not in name and "lm_head" not in name
        and ".experts." not in name
    )  # fmt: skip
    assert sparse == pytest.approx(others + dense / 2)


def saved(folder: Path, **settings: object) -> Path:
    config = config_of("mixtral")
    config.vocab_size = len(tokenizer())
    network = build(config)
    for key, value in settings.items():
        setattr(network.config, key, value)
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_what_a_run_leaves_as_it_is_is_said(tmp_path: Path) -> None:
    folder, told = saved(tmp_path, output_router_logits=True, router_jitter_noise=0.3), []
    policy = load_policy(named(folder, lora={"rank": 2}), seed=0, warn=told.append)
    assert [line.partition(": ")[2].partition(";")[0] for line in told] == [
        "LoRA adapts linear layers",
        "its config.json asks for an auxiliary loss of the router (0.001 of it)",
    ]
    assert "model.layers.0.mlp.experts.gate_up_proj" in told[0]
    assert policy.model.config.router_jitter_noise == 0.0
    kept = load_policy(named(folder, keep_dropout=True), seed=0)
    assert kept.model.config.router_jitter_noise == 0.3
