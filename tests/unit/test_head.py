"""The log-prob head: logits in float32, and what is left out where nothing learns. Gradients: test_packing_parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from orpo_ray.config import ModelConfig, TrainConfig
from orpo_ray.config.identity import digest
from orpo_ray.errors import UserError
from orpo_ray.inference.plain_generation import load_network
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.head import LogprobHead, logprobs
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.memory import _head_bytes

VOCAB, WIDTH, ROWS = 1000, 64, 40
RUN: dict[str, Any] = {"name": "x", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}


def inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Of bfloat16's numbers, in float64: hidden states, weights, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH, generator=generator), torch.randn(VOCAB, WIDTH, generator=generator)
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    return hidden.bfloat16().double(), (weight * scale).bfloat16().double(), targets


def head_of(weight: Tensor, *, float32_logits: bool = False, chunk_rows: int = ROWS, **more: Any) -> LogprobHead:
    head = LogprobHead.from_linear(torch.nn.Linear(WIDTH, VOCAB, bias=False))
    head.weight = torch.nn.Parameter(weight)
    head.float32_logits = float32_logits
    head.chunk_bytes = chunk_rows * VOCAB * head.bytes_per_logit
    for name, value in more.items():
        setattr(head, name, value)
    return head


@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"softcap": 30.0}])
def test_float32_logits_are_as_much_nearer_to_a_float32_head_as_float32_has_digits(more: dict[str, Any]) -> None:
    """2^15 times, of which the order of sums takes some."""
    hidden, weight, targets = inputs()
    expected = head_of(weight, **more)(hidden, targets)
    rounded, kept = (
        head_of(weight.bfloat16(), float32_logits=on, **more)(hidden.bfloat16(), targets) for on in (False, True)
    )
    apart, much_less = ((each.double() - expected).abs().mean() for each in (rounded, kept))
    assert rounded.dtype == kept.dtype == torch.float32
    assert 1e-3 < apart < 0.1
    assert much_less < apart / 5_000


@pytest.mark.parametrize("chunk_rows", [ROWS, 7])
@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"softcap": 30.0}])
def test_gradients_by_float32_logits_are_rounded_once(more: dict[str, Any], chunk_rows: int) -> None:
    hidden, weight, targets = inputs(0.2)

    def gradients(dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
        head, given = head_of(weight.to(dtype), **options, **more), hidden.to(dtype).requires_grad_()
        return torch.autograd.grad(head(given, targets).sum(), (given, head.weight))

    exact = gradients(torch.float64)
    found = gradients(torch.bfloat16, float32_logits=True, chunk_rows=chunk_rows)
    for half, expected in zip(found, exact, strict=True):
        assert half.dtype == torch.bfloat16
        assert (half - expected).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_logits_change_nothing_where_they_are(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs()
    plain, asked = (head_of(weight.to(dtype), float32_logits=on) for on in (False, True))
    assert asked.bytes_per_logit == plain.bytes_per_logit == dtype.itemsize
    assert torch.equal(asked(hidden.to(dtype), targets), plain(hidden.to(dtype), targets))
    assert torch.equal(asked(hidden.to(dtype)), plain(hidden.to(dtype)))


def test_without_targets_the_logits_are_in_float32_too() -> None:
    hidden, weight, _ = inputs()
    head = head_of(weight.bfloat16(), float32_logits=True)
    given = hidden.bfloat16().view(2, ROWS // 2, WIDTH)
    expected = hidden.float() @ weight.float().t()
    with torch.no_grad():
        alone = head(given)
    for logits in (head(given), alone):
        assert (logits.dtype, logits.shape) == (torch.float32, (2, ROWS // 2, VOCAB))
        torch.testing.assert_close(logits.view(ROWS, VOCAB), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"softcap": 30.0}, {"float32_logits": True}])
def test_where_nothing_learns_no_gradient_is_made_and_the_bits_are_the_same(
    dtype: torch.dtype, more: dict[str, Any]
) -> None:
    hidden, weight, targets = inputs()
    head, given = head_of(weight.to(dtype), chunk_rows=7, **more), hidden.to(dtype)
    learned = head(given, targets)
    assert learned.grad_fn.held is not None
    with torch.no_grad():
        assert torch.equal(head(given, targets), learned)
    with torch.inference_mode():
        assert torch.equal(head(given, targets), learned)
    logits = (given @ weight.to(dtype).t()).requires_grad_()
    before = logits.detach().clone()
    with torch.no_grad():
        alone = logprobs(logits, targets)
    assert torch.equal(alone, logprobs(logits, targets)) and torch.equal(logits, before)


def toy(**more: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name_or_path": "toy", "init": "random", **more})


def test_a_models_files_carry_what_its_logits_were(tmp_path: Path) -> None:
    """So an engine, a judge, and a reference that is kept by its digest compute as training did."""
    rounded, kept = (load_policy(toy(float32_logits=on), seed=0) for on in (False, True))
    assert [each.model.get_output_embeddings().float32_logits for each in (rounded, kept)] == [False, True]
    assert len({network_digest(each.model, each.model.state_dict()) for each in (rounded, kept)}) == 2
    kept.model.save_pretrained(tmp_path)
    saved = ModelConfig(name_or_path=str(tmp_path))
    again, drawn_from = load_policy(saved, seed=0), load_network(saved, "saved")
    assert again.model.get_output_embeddings().float32_logits
    with torch.no_grad():
        assert drawn_from(torch.tensor([[1, 2, 3]])).logits.dtype == torch.float32
    assert dict(drawn_from.named_parameters()).keys() == dict(kept.model.named_parameters()).keys()


def test_the_memory_estimate_knows_them() -> None:
    rounded, kept = (load_policy(toy(float32_logits=on), seed=0) for on in (False, True))
    assert _head_bytes(kept, 100, "none") == 3 * _head_bytes(rounded, 100, "none")


def test_who_has_no_logits_of_its_own_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.float32_logits: toy is asked a text at a time"):
        load_policy(toy(float32_logits=True, packing="off"), seed=0)
    with pytest.raises(ValidationError, match=r"model\.float32_logits: a reward model has no logits"):
        TrainConfig.model_validate(
            RUN | {"model": {"name_or_path": "toy", "float32_logits": True}, "objective": {"name": "reward"}}
        )


def test_runs_from_before_there_was_the_option_are_continued() -> None:
    run = TrainConfig.model_validate(RUN).model_dump(mode="json")
    before = {**run, "model": {key: value for key, value in run["model"].items() if key != "float32_logits"}}
    assert digest(run) == digest(before)
    assert digest({**run, "model": {**run["model"], "float32_logits": True}}) != digest(run)
