"""Attention by blocks of short examples is that of single segments, to rounding, and repeats bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import VOCAB, build, random_examples
from test_packing_parity import plain_logps
from torch import Tensor
from transformers import PretrainedConfig

from orpo_ray.data import packing
from orpo_ray.data.packing import Block, Layout, pack
from orpo_ray.modeling.attention import NAME, shared_prefix_attention
from orpo_ray.modeling.policy import PackedPolicy

HEADS, HEAD_DIM, PADDING = 4, 8, 5


def examples_of(sizes: list[list[int]]) -> list[list[np.ndarray]]:
    return [[np.zeros(size, np.int32) for size in example] for example in sizes]


def random_sizes(rng: np.random.Generator) -> list[list[int]]:
    """Prompts with the same number of continuations, one-token segments often among them."""
    continuations, longest = int(rng.integers(1, 4)), int(rng.integers(2, 40))
    sizes = rng.integers(1, longest, (int(rng.integers(1, 9)), 1 + continuations))
    sizes[rng.random(sizes.shape) < 0.2] = 1
    return sizes.tolist()  # type: ignore[no-any-return]


def attended(layout: Layout, kv_heads: int, dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
    """The result, and the gradients of query, key and value, for a row with padding behind it."""
    generator = torch.Generator().manual_seed(0)
    tokens = layout.segments[-1].end + PADDING

    def drawn(heads: int) -> Tensor:
        return torch.randn(1, heads, tokens, HEAD_DIM, dtype=dtype, generator=generator).requires_grad_()

    inputs = drawn(HEADS), drawn(kv_heads), drawn(kv_heads)
    result, _ = shared_prefix_attention(torch.nn.Identity(), *inputs, None, layout=layout, **options)
    weights = torch.randn(result.shape, dtype=dtype, generator=generator)
    return result.detach(), *torch.autograd.grad((result * weights).sum(), inputs)


def single_segments(examples: list[list[np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The layout of `examples` in which nothing is short."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_SHORT", 0)
        layout = pack(examples, score_prompts=False).layout
        assert not any(isinstance(part, Block) for part in layout.parts)
    return layout


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_blocks_equal_single_segments(
    window: int | None, kv_heads: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(kv_heads)
    for _ in range(12):
        examples = examples_of(random_sizes(rng))
        options = {"sliding_window": window, "scaling": float(rng.uniform(0.1, 1))}
        expected = attended(single_segments(examples, monkeypatch), kv_heads, dtype, **options)
        with monkeypatch.context() as patch:  # some examples are short, some are not
            patch.setattr(packing, "_SHORT", int(rng.integers(5, 90)))
            patch.setattr(packing, "_CALL", int(rng.integers(0, 3000)))
            actual = attended(pack(examples, score_prompts=False).layout, kv_heads, dtype, **options)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * 10)
        for result in (actual[0][0], *(gradient[0].transpose(0, 1) for gradient in actual[1:])):
            assert not result[-PADDING:].any()


def test_the_same_row_gives_the_same_bits() -> None:
    layouts = [pack(random_examples(seed=2, prompts=12), score_prompts=False).layout for _ in range(2)]
    first, second = (attended(layout, 2, torch.float32) for layout in layouts)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dropout_zeroes_weights_and_keeps_their_mean() -> None:
    layout = pack(examples_of([[3, 2, 2], [2, 3, 1]]), score_prompts=False).layout
    ones = torch.ones(1, 1, layout.segments[-1].end, 1)
    torch.manual_seed(0)
    drawn = torch.stack(
        [
            shared_prefix_attention(torch.nn.Identity(), ones, ones, ones, None, layout=layout, dropout=0.5)[
                0
            ].flatten()
            for _ in range(2000)
        ]
    )
    assert drawn.min() == 0
    assert (drawn.mean(0) - 1).abs().max() < 0.15


def test_parts_are_the_row_and_padding_is_bounded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = random_sizes(rng)
        layout = pack(examples_of(sizes), score_prompts=False).layout
        end = 0
        for part in layout.parts:
            assert part.start == end
            end = part.end
            if isinstance(part, Block):
                filled = part.segment >= 0
                assert torch.equal(part.slots[part.places], torch.arange(part.end - part.start))
                assert int(filled.sum()) == part.end - part.start
                assert part.segment.shape[1] == int(filled.sum(1).max()) <= packing._SHORT
                calls = packing._CALL * (len(part.segment) - 1)
                assert part.segment.numel() * part.segment.shape[1] <= int(filled.sum(1).square().sum()) + calls
        assert end == sum(map(sum, sizes))


def test_blocks_and_single_segments_in_one_row_equal_plain_forwards(
    family: PretrainedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_SHORT", 40)
    monkeypatch.setattr(packing, "_CALL", 200)
    rng = np.random.default_rng(1)
    examples = [
        [rng.integers(3, VOCAB, size).astype(np.int32) for size in sizes]
        for sizes in ([9, 8, 7], [30, 20, 5], [1, 1, 30], [2, 1, 1], [12, 12, 12], [25, 1, 40])
    ]
    batch = pack(examples, score_prompts=True)
    kinds = [isinstance(part, Block) for part in batch.layout.parts]
    assert sum(kinds) > 1
    assert not all(kinds)
    plain, packed = build(family, "eager"), PackedPolicy(build(family, NAME))
    with torch.no_grad():
        expected = torch.cat([plain_logps(plain, example) for example in examples])
        torch.testing.assert_close(packed(batch), expected, rtol=1e-5, atol=1e-4)
