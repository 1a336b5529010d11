"""Mixtures of experts: FLOPs by the experts that a token goes to, adapters, auxiliary losses, jitter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import build, config_of
from families import _use_exact_norms, random_examples
from test_lora import draw_adapters
from test_packing_parity import plain_logps
from test_reward_model import named, tokenizer
from transformers import AutoModelForCausalLM

from orpo_ray.config import LoraConfig, parse_config
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.adapters import merged_adapter
from orpo_ray.modeling.experts import shares
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import add_adapters, merged_weights
from orpo_ray.modeling.memory import Recomputation, activation_bytes, set_recomputation
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training.export import export_adapter, export_model


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "deepseek_v3"])
def test_operations_are_those_of_the_experts_that_a_token_goes_to(name: str) -> None:
    """Two of four."""
    network = build(config_of(name))
    experts = {name: weight for name, weight in network.named_parameters() if weight.dim() > 2}
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


def saved(folder: Path, name: str = "mixtral", **settings: object) -> Path:
    config = config_of(name)
    config.vocab_size = len(tokenizer())
    network = build(config)
    for key, value in settings.items():
        setattr(network.config, key, value)
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


KINDS = ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "deepseek_v3", "llama4_text", "lfm2_moe", "phimoe", "jetmoe"]
"""With weights of experts as `(experts, out, in)`, as `(experts, in, out)`, and asked a text at a time."""


@pytest.mark.parametrize("name", KINDS)
def test_adapters_of_experts_are_merged_and_written_as_they_compute(name: str, tmp_path: Path) -> None:
    """The network with adapters, packed; the merged model, plain; and peft's own over the base, plain."""
    examples = random_examples(seed=3, prompts=2)
    folder = saved(tmp_path / "base", name)
    told: list[str] = []
    policy = load_policy(named(folder, lora={"rank": 3, "alpha": 7}), seed=0, warn=told.append).eval()
    assert not any("get no adapters" in line for line in told)
    draw_adapters(policy.model)
    weights = dict(policy.model.state_dict())
    adapted = {key for key in weights if ".base_layer." in key and weights[key].dim() == 3 and "conv" not in key}
    assert adapted == {key for key, weight in weights.items() if weight.dim() == 3 and "conv" not in key}
    assert adapted and not any(".router.lora_" in key for key in weights)
    exported = merged_weights(policy.model, weights)
    base = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    assert exported.keys() == base.state_dict().keys()
    changed = [key for key, weight in base.state_dict().items() if weight.dim() == 3 and "conv" not in key]
    assert len(changed) == len(adapted) and not any(
        torch.equal(exported[key], base.state_dict()[key]) for key in changed
    )
    config = parse_config(
        {"name": "r", "model": {"name_or_path": str(folder)}, "data": {"train": "toy"}}, [], "test"
    )  # fmt: skip
    line = {"step": 1, "eval_loss": 1.0}
    export_model(tmp_path / "model", policy.model, exported, tokenizer(), config, line, 9)
    export_adapter(tmp_path / "adapter", policy.model, weights, exported, tokenizer(), config)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", experts_implementation="eager").eval()
    over_base = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    evaluated = merged_adapter(tmp_path / "adapter", tmp_path / "cache")
    with torch.no_grad():
        expected = policy(pack(examples, score_prompts=True)).view(2, 3)
        plain = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
        assert (torch.stack([plain_logps(plain, example) for example in examples]) - expected).abs().max() > 0.05
        for network in (merged, over_base, AutoModelForCausalLM.from_pretrained(evaluated).eval()):
            found = torch.stack([plain_logps(network, example) for example in examples])
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_gradients_of_adapted_experts_are_those_of_peft(level: Recomputation, tmp_path: Path) -> None:
    examples = random_examples(seed=7, prompts=2)
    policy = load_policy(named(saved(tmp_path), lora={"rank": 3}), seed=0)
    draw_adapters(policy.model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    add_adapters(plain, LoraConfig(rank=3), seed=0)
    plain.load_state_dict(policy.model.state_dict())
    policy.model.set_experts_implementation("eager")  # grouped products know no float64
    for network in (policy.double().model, plain.double()):
        _use_exact_norms(network)
    set_recomputation(policy, level)
    policy(pack(examples, score_prompts=True)).sum().backward()
    torch.stack([plain_logps(plain, example) for example in examples]).sum().backward()
    mine, theirs = dict(policy.model.named_parameters()), dict(plain.named_parameters())
    trained = {name for name, weight in theirs.items() if weight.requires_grad}
    assert {name for name in trained if ".experts." in name} and trained == {
        n for n, p in mine.items() if p.requires_grad
    }
    scale = max(float(theirs[name].grad.abs().max()) for name in trained)
    for name in trained:
        assert (mine[name].grad - theirs[name].grad).abs().max() < 1e-7 * scale, name


@pytest.mark.parametrize(
    ("lora", "adapted", "told"),
    [
        ({}, True, ""),
        ({"dropout": 0.1}, False, "they have none where model.lora.dropout is set"),
        ({"target_modules": ["q_proj"]}, False, "they are not among model.lora.target_modules"),
        ({"target_modules": ["q_proj", "down_proj"]}, True, "such as model.layers.0.mlp.experts.gate_up_proj"),
        ({"target_modules": ["experts.down_proj", "gate_up_proj"]}, True, ""),
    ],
)
def test_which_experts_are_adapted(lora: dict[str, Any], adapted: bool, told: str, tmp_path: Path) -> None:
    said: list[str] = []
    policy = load_policy(named(saved(tmp_path), lora=lora), seed=0, warn=said.append)
    trained = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert any(".experts." in name for name in trained) == adapted
    assert all("lora_" in name for name in trained)
    assert len(said) == bool(told) and told in "".join(said)


def test_what_of_experts_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(UserError, match=r"^model\.lora\.dropout: adapters of experts \(down_proj\) have none"):
        load_policy(named(folder, lora={"target_modules": ["down_proj"], "dropout": 0.1}), seed=0)
    with pytest.raises(
        UserError, match=r"no linear layer w1 .* it has .*q_proj.*experts\.down_proj, experts\.gate_up_proj"
    ):
        load_policy(named(folder, lora={"target_modules": ["w1"]}), seed=0)


def test_adapters_of_experts_count_as_their_experts_do(tmp_path: Path) -> None:
    """Two of four; and what they keep for backward beside tokens is a copy of the experts' weights."""
    policies = [load_policy(named(saved(tmp_path), lora=lora), seed=0) for lora in ({"target_modules": ["q_proj"]}, {})]
    attention, all_linear = ({n: p for n, p in p.model.named_parameters() if p.requires_grad} for p in policies)
    more = {name: weight for name, weight in all_linear.items() if name not in attention}
    expected = sum(6 * weight.numel() * (0.5 if ".experts." in name else 1) for name, weight in more.items())
    counted = [StepFlops.of(policy).per_token for policy in policies]
    assert counted[1] - counted[0] == pytest.approx(expected)
    copies = sum(w.nbytes for n, w in policies[1].model.named_parameters() if w.dim() == 3)
    few, many = (activation_bytes(policies[1], tokens)["none"] for tokens in (64, 64_000))
    assert copies < few and many < 1000 * (few - copies) * 1.1 + copies


def test_what_a_run_leaves_as_it_is_is_said(tmp_path: Path) -> None:
    folder, told = saved(tmp_path, output_router_logits=True, router_jitter_noise=0.3), []
    policy = load_policy(named(folder, lora={"rank": 2, "dropout": 0.1}), seed=0, warn=told.append)
    assert [line.partition(": ")[2].partition(";")[0].partition(", such")[0] for line in told] == [
        "the experts' weights",
        "its config.json asks for an auxiliary loss of the router (0.001 of it)",
    ]
    assert "model.layers.0.mlp.experts.gate_up_proj" in told[0]
    assert policy.model.config.router_jitter_noise == 0.0
    kept = load_policy(named(folder, keep_dropout=True), seed=0)
    assert kept.model.config.router_jitter_noise == 0.3
