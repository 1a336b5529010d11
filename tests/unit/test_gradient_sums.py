"""Gradients of ranks are summed while backward goes on: in one order, whatever comes first, and to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, random_pairs
from torch import Tensor

from orpo_ray.config import OptimConfig
from orpo_ray.data.packing import pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training import gradient_sums
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.gradient_sums import GradientSums


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Elements of each all-reduce, over a group of one rank."""
    store, calls, reduce = torch.distributed.HashStore(), [], torch.distributed.all_reduce

    def counted(tensor: Tensor, **options: Any) -> Any:
        calls.append(tensor.numel())
        return reduce(tensor, **options)

    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(torch.distributed, "all_reduce", counted)
    monkeypatch.setattr(gradient_sums, "_TOGETHER", 5)
    yield calls
    torch.distributed.destroy_process_group()


SIZES = (3, 4, 1, 5, 2, 2, 6)
BUCKETS = [6 + 0, 2 + 2 + 5, 1 + 4, 3]  # from the last weight on, as soon as there are five elements


@pytest.mark.parametrize("seed", range(6))
def test_buckets_begin_in_one_order_whatever_comes_first(seed: int, summed: list[int]) -> None:
    rng = np.random.default_rng(seed)
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in SIZES]
    sums = GradientSums(weights)
    for step in range(2):  # the second begins anew
        absent = {int(rng.integers(len(weights)))} if seed % 2 else set()
        for place, weight in enumerate(weights):
            weight.grad = None if place in absent else torch.full(weight.shape, place + 1.0 + step)
        summed.clear()
        for place in rng.permutation(len(weights)):
            if place not in absent:
                sums.ready(weights[place])
        assert summed == BUCKETS if not absent else summed == BUCKETS[: len(summed)]
        sums.finish()
        assert summed == BUCKETS
        for place, weight in enumerate(weights):
            assert weight.grad is not None
            assert weight.grad.tolist() == [0.0 if place in absent else place + 1.0 + step] * weight.numel()


def test_a_sum_begins_while_others_are_awaited(summed: list[int]) -> None:
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in SIZES]
    sums = GradientSums(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    begun = []
    for weight in reversed(weights):
        sums.ready(weight)
        begun.append(len(summed))
    assert begun == [1, 1, 1, 2, 2, 3, 4]
    sums.finish()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_sums_in_the_last_micro_batch_alone(
    dtype: torch.dtype, summed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a group of one rank, which it takes for two: to the bits that it has without."""
    data = random_pairs(6)
    batches = [pack([data.pair(pair) for pair in pairs], score_prompts=False) for pairs in ((0, 1), (2, 3), (4,))]

    def trained(ranks: int) -> tuple[list[float], list[bytes], list[int]]:
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
        policy = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME, dtype)).train()
        engine, norms, begun = TorchEngine(policy, OptimConfig(lr=1e-2)), [], []
        for _ in range(2):
            for number, batch in enumerate(batches):
                summed.clear()
                engine.backward(-engine.forward(batch).sum() / 9, last=number == 2)
                begun.append(len(summed))
                assert all(low.grad is None for low in policy.parameters() if low.dtype != torch.float32)
            norms.append(float(engine.step(1e-2)))
        return norms, [weight.detach().float().numpy().tobytes() for weight in policy.parameters()], begun

    alone, together = trained(1), trained(2)
    assert together[:2] == alone[:2]
    assert alone[2] == [0] * 6 and together[2][0::3] == together[2][1::3] == [0, 0] and min(together[2][2::3]) > 5


def test_an_engine_that_is_gone_leaves_the_policy_to_the_next() -> None:
    policy = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME, torch.bfloat16)).train()
    batch, norms = pack([random_pairs(2).pair(0)], score_prompts=False), []
    for _ in range(2):
        engine = TorchEngine(policy, OptimConfig(lr=1e-2))
        engine.backward(-engine.forward(batch).sum(), last=True)
        norms.append(float(engine.step(0.0)))
        del engine
    assert norms[0] == norms[1] > 0
