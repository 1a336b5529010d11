"""Packed shared-prefix log-probs and gradients equal plain, unpadded Hugging Face forwards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCAB, build, random_examples
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from orpo_ray.data.packing import pack
from orpo_ray.modeling import head, memory
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.memory import Recomputation, activation_bytes, least_recomputation, set_recomputation
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.terms import Totals


def plain_logps(model: PreTrainedModel, example: list[np.ndarray], **options: Any) -> Tensor:
    """Log-prob sums `[prompt, cont 1, …]` of one example, a separate unpadded forward for each continuation."""
    prompt = torch.from_numpy(example[0]).long()
    sums = []
    for ids in example[1:]:
        row = torch.cat([prompt, torch.from_numpy(ids).long()])
        logps = model(input_ids=row[None], **options).logits[0, :-1].log_softmax(-1).gather(1, row[1:, None])[:, 0]
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


LAMBDA = 0.4


def dense_orpo(model: PreTrainedModel, examples: list[list[np.ndarray]]) -> Tensor:
    """The ORPO loss from plain forwards, written as the paper does (Eq. 3 to 7)."""
    sums = torch.stack([plain_logps(model, example) for example in examples])
    lengths = torch.tensor([[len(ids) for ids in example] for example in examples])
    logps = sums[:, 1:] / lengths[:, 1:]
    odds = logps.exp() / (1 - logps.exp())
    odds_ratio_loss = -torch.log(torch.sigmoid(torch.log(odds[:, 0] / odds[:, 1])))
    nll = -sums[:, :2].sum() / (lengths[:, 0] - 1 + lengths[:, 1]).sum()
    return nll + LAMBDA * odds_ratio_loss.mean()


def packed_orpo(policy: PackedPolicy, examples: list[list[np.ndarray]]) -> Tensor:
    batch = pack(examples, score_prompts=True)
    lengths = batch.lengths.view(len(examples), 3)
    totals = Totals(pairs=len(examples), nll_tokens=int(lengths[:, :2].sum()))
    return orpo(policy(batch).view(len(examples), 3), lengths, totals, lambda_=LAMBDA)[0]


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_orpo_gradients_equal_a_dense_float64_reference(
    family: PretrainedConfig,
    recomputation: Recomputation,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head computes in several chunks; errors are relative to the largest gradient of the model."""
    monkeypatch.setattr(head.LogprobHead, "chunk_bytes", 20 * VOCAB * dtype.itemsize)
    monkeypatch.setattr(memory, "SMALL_CHUNK", 7 * VOCAB * dtype.itemsize)
    examples = random_examples(seed=7, prompts=3)
    plain, packed = build(family, "sdpa", torch.float64), PackedPolicy(build(family, NAME, dtype))
    set_recomputation(packed.train(), recomputation)
    expected_loss, loss = dense_orpo(plain, examples), packed_orpo(packed, examples)
    assert abs(float(loss.detach()) - float(expected_loss.detach())) <= tolerance * float(expected_loss.detach())
    expected_loss.backward()
    loss.backward()
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (name, expected), actual in zip(plain.named_parameters(), packed.model.parameters(), strict=True):
        if expected.grad is None:
            assert actual.grad is None, name
            continue
        assert actual.grad is not None, name
        assert (actual.grad - expected.grad).abs().max() <= tolerance * scale, name


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


def test_a_frozen_head_gets_no_gradient_and_passes_the_same_on() -> None:
    torch.manual_seed(0)
    linear, targets = torch.nn.Linear(32, VOCAB), torch.randint(0, VOCAB, (64,))
    gradients = []
    for trained in (True, False):
        hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        own = head.LogprobHead.from_linear(copy.deepcopy(linear).requires_grad_(trained))
        own(hidden, targets).square().sum().backward()
        assert (own.weight.grad is not None) == (own.bias.grad is not None) == trained
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)


def test_the_heads_second_backward_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffer holds another chunk by then."""
    monkeypatch.setattr(head.LogprobHead, "chunk_bytes", 3 * VOCAB * 8)
    own = head.LogprobHead.from_linear(torch.nn.Linear(8, VOCAB, dtype=torch.float64))
    hidden = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
    loss = own(hidden, torch.arange(10)).square().sum()
    first, second = (torch.autograd.grad(loss, (hidden, own.weight), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second)


def test_memory_levels_need_less_and_less_and_the_first_that_fits_is_taken(family: PretrainedConfig) -> None:
    deep = copy.deepcopy(family)
    deep.num_hidden_layers = 8
    if hasattr(deep, "layer_types"):
        deep.layer_types = [deep.layer_types[0]] * 8
    policy = PackedPolicy(build(deep, NAME))
    none, selective, full = activation_bytes(policy, 512).values()
    assert none > selective > full > 0
    assert activation_bytes(policy, 1024)["none"] == 2 * none
    for room, level in ((none, "none"), (none - 1, "selective"), (selective - 1, "full"), (0, "full")):
        assert least_recomputation(policy, 512, room) == level


def test_head_in_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(64, 32), torch.randint(0, VOCAB, (64,))
    linear = torch.nn.Linear(32, VOCAB, bias=False)
    exact = head.LogprobHead.from_linear(linear)(hidden, targets)
    half = head.LogprobHead.from_linear(linear.bfloat16())(hidden.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.05


def test_head_in_bfloat16_has_the_gradients_of_its_own_rounded_inputs() -> None:
    """Confident tokens among them: a gradient of 1 - p must keep its digits where p is near 1."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(64, 32).bfloat16(), torch.randint(0, VOCAB, (64,))
    weight = (torch.randn(VOCAB, 32) * torch.linspace(0.1, 3, VOCAB)[:, None]).bfloat16()
    factors = torch.full((64,), -1 / 237)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        linear = torch.nn.Linear(32, VOCAB, bias=False)
        linear.weight = torch.nn.Parameter(weight.to(dtype))
        own = head.LogprobHead.from_linear(linear)
        inputs = hidden.to(dtype).requires_grad_()
        return torch.autograd.grad((own(inputs, targets) * factors).sum(), (inputs, own.weight))

    for half, exact in zip(gradients(torch.bfloat16), gradients(torch.float64), strict=True):
        assert (half - exact).abs().max() < 0.02 * exact.abs().max()  # logits of 17 are rounded to 0.06
