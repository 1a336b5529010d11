"""Texts one by one: the same losses and gradients as packed, and exact where a row of several would not be."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import VOCAB, build, config_of
from families import FAMILIES, random_examples
from families import build as family_of
from test_packing_parity import packed_orpo, plain_logps
from transformers import AutoModelForSequenceClassification, Phi3Config

from orpo_ray.data.packing import pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.memory import activation_bytes
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel


@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped-query", "mistral-window-shorter"])
def test_loss_and_gradients_equal_the_packed_ones(name: str) -> None:
    examples = random_examples(seed=7, prompts=4)
    packed = PackedPolicy(family_of(FAMILIES[name], NAME, torch.float64))
    alone = PackedPolicy(family_of(FAMILIES[name], "sdpa", torch.float64), alone="a test")
    losses = [packed_orpo(policy, examples) for policy in (packed, alone)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
    for loss in losses:
        loss.backward()
    for (which, ours), theirs in zip(packed.model.named_parameters(), alone.model.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=which)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "gpt_oss"])
def test_gradients_of_heads_and_attention_of_their_own(name: str) -> None:
    """Soft caps, scaled logits and sinks, against the model's own code, in chunks of the head."""
    dtype = torch.float32 if name == "gpt_oss" else torch.float64  # its experts' products know no other
    plain, packed = (build(config_of(name)).to(dtype) for _ in range(2))
    packed.set_attn_implementation(NAME)
    policy = PackedPolicy(packed)
    policy.model.get_output_embeddings().chunk_bytes = 8 * VOCAB * 30
    examples = random_examples(seed=5, prompts=3, longest=50)
    weights = torch.linspace(-1, 2, 9, dtype=dtype)
    (policy(pack(examples, score_prompts=True)) * weights).sum().backward()
    (torch.cat([plain_logps(plain, example) for example in examples]) * weights).sum().backward()
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (which, expected), found in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        assert (expected.grad is None) == (found[1].grad is None), which
        if expected.grad is not None:
            # transformers' norms and softmax compute in float32 whatever the weights are.
            assert float((found[1].grad - expected.grad).abs().max()) <= 2e-5 * scale, which


def test_a_head_knows_what_is_done_behind_it() -> None:
    heads = [LogprobHead.of(build(config_of(name))) for name in ("llama", "cohere", "granite", "gemma2")]
    assert [(head.scale, head.softcap) for head in heads] == [(1, None), (0.0625, None), (1, None), (1, 30.0)]


def test_a_reward_a_text_at_a_time() -> None:
    config = config_of("bloom")
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    examples = random_examples(seed=3, prompts=3)
    with torch.no_grad():
        expected = [
            float(network(input_ids=torch.from_numpy(np.concatenate([prompt, ids])).long()[None]).logits)
            for prompt, *continuations in examples
            for ids in continuations
        ]
        found = PackedRewardModel(network, alone="a test")(pack(examples, score_prompts=False)).view(3, 3)
    assert torch.equal(found[:, 0], torch.zeros(3))
    torch.testing.assert_close(found[:, 1:].flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_positions_that_depend_on_a_texts_length() -> None:
    """LongRoPE: short and long texts in one batch have the numbers that they have alone."""
    shape = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 4.0, 8.0], "original_max_position_embeddings": 40}
    config = Phi3Config(
        **shape, max_position_embeddings=256, original_max_position_embeddings=40, pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )  # fmt: skip
    examples = [example for seed in (1, 2) for example in random_examples(seed, prompts=3, longest=40)]
    lengths = [len(prompt) + len(ids) for prompt, *continuations in examples for ids in continuations]
    assert min(lengths) < 40 < max(lengths)
    network = build(config)
    plain = copy.deepcopy(network)
    network.set_attn_implementation(NAME)
    policy = PackedPolicy(network)
    with torch.no_grad():
        expected = torch.cat([plain_logps(plain, example) for example in examples])
        together = policy(pack(examples, score_prompts=True))
        alone = torch.cat([policy(pack([example], score_prompts=True)) for example in examples])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-4)


def test_what_a_text_at_a_time_keeps_is_counted() -> None:
    needed = activation_bytes(PackedPolicy(build(config_of("falcon")), alone="a test"), tokens=1000)
    assert 0 < needed["full"] <= needed["none"]
