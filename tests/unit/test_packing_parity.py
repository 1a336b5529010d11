"""Packed shared-prefix log-probs and gradients equal plain, unpadded Hugging Face forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, VOCAB, build, random_examples
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from orpo_ray.data.packing import pack
from orpo_ray.modeling import head
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy


def plain_logps(model: PreTrainedModel, example: list[np.ndarray]) -> Tensor:
    """Log-prob sums `[prompt, cont 1, …]` of one example, a separate unpadded forward for each continuation."""
    prompt = torch.from_numpy(example[0]).long()
    sums = []
    for ids in example[1:]:
        row = torch.cat([prompt, torch.from_numpy(ids).long()])
        logps = model(input_ids=row[None]).logits[0, :-1].log_softmax(-1).gather(1, row[1:, None])[:, 0]
        if not sums:
            sums.append(logps[: len(prompt) - 1].sum())
        sums.append(logps[len(prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("continuations", [1, 2, 4])
def test_logps_equal_plain_forwards(family: PretrainedConfig, continuations: int) -> None:
    examples = random_examples(seed=continuations, prompts=4, continuations=continuations)
    plain, packed = build(family, "eager"), PackedPolicy(build(family, NAME))
    with torch.no_grad():
        expected = torch.cat([plain_logps(plain, example) for example in examples])
        actual = packed(pack(examples, score_prompts=True))
    per_token = torch.tensor([max(len(ids), 1) for example in examples for ids in example])
    assert ((actual - expected).abs() / per_token).max() <= 1e-5
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_plain_forwards(
    family: PretrainedConfig, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64, weighted so that every sequence pulls differently; the head in several chunks."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 20 * VOCAB)
    examples = random_examples(seed=7, prompts=3)
    plain, model = build(family, "sdpa", torch.float64), build(family, NAME, torch.float64)
    packed = PackedPolicy(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64)
    (torch.cat([plain_logps(plain, example) for example in examples]) * weights).sum().backward()
    (packed(pack(examples, score_prompts=True)) * weights).sum().backward()
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (name, expected), actual in zip(plain.named_parameters(), packed.model.parameters(), strict=True):
        if expected.grad is None:
            assert actual.grad is None, name
            continue
        assert actual.grad is not None, name
        assert (actual.grad - expected.grad).abs().max() <= 1e-9 * scale, name


def test_prompts_are_scored_only_on_request() -> None:
    examples = random_examples(seed=3, prompts=2)
    policy = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))
    with torch.no_grad():
        scored = policy(pack(examples, score_prompts=True)).view(2, 3)
        unscored = policy(pack(examples, score_prompts=False)).view(2, 3)
    assert torch.equal(unscored[:, 0], torch.zeros(2))
    torch.testing.assert_close(unscored[:, 1:], scored[:, 1:])


def test_a_batch_of_many_prompts_scores_each_as_alone() -> None:
    """Nothing leaks between prompts or between continuations."""
    examples = random_examples(seed=5, prompts=6, continuations=3)
    policy = PackedPolicy(build(FAMILIES["mistral-window-shorter"], NAME))
    with torch.no_grad():
        together = policy(pack(examples, score_prompts=True)).view(6, 4)
        alone = torch.stack([policy(pack([example], score_prompts=True)) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_head_gives_logits_without_targets() -> None:
    linear = torch.nn.Linear(8, 5)
    hidden = torch.randn(3, 8)
    assert torch.equal(head.LogprobHead.from_linear(linear)(hidden), linear(hidden))


def test_head_in_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(64, 32), torch.randint(0, VOCAB, (64,))
    linear = torch.nn.Linear(32, VOCAB, bias=False)
    exact = head.LogprobHead.from_linear(linear)(hidden, targets)
    half = head.LogprobHead.from_linear(linear.bfloat16())(hidden.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.05
