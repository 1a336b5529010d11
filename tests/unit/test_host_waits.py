"""A step has the host wait for the device once: nothing else in it asks for a number that is computed there.

The network's own forward is left out.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import FAMILIES, build, random_groups, random_pairs
from test_determinism import config, data_of, scorer_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from orpo_ray.config import OptimConfig
from orpo_ray.data.packing import PackedBatch, pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import Meter, train_step
from orpo_ray.training.source import PairSource

_WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
"""Operators whose result, or its size, the host has to know."""


class HostWaits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in _WAIT or by_mask:
            self.found.append(name)
        return operator(*args, **(kwargs or {}))


class Engine(TorchEngine):
    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        with _disable_current_modes():  # type: ignore[no-untyped-call]
            return super().forward(batch, by_token=by_token)


@pytest.mark.parametrize("objective", ["orpo", "dpo", "kto", "kto_pair", "reward, loss: plackett_luce"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_waits_once(objective: str, dtype: str) -> None:
    settings = config(f"objective={{name: {objective}}}", f"model.dtype={dtype}")
    engine = Engine(scorer_of(settings, "llama-grouped-query"), settings.optim)
    source = PairSource(
        engine, settings, data_of(settings), random_groups(4) if "reward" in objective else random_pairs(4)
    )
    meter, feed = Meter(lambda batch: 1.0, 1.0), source.micro_batches(0)  # type: ignore[arg-type]
    with HostWaits() as waits:
        line, _ = train_step(engine, settings, source, feed, 0, meter, {})
    assert waits.found == [], "`tolist` of the metrics, which is the one, is no operator"
    assert math.isfinite(line["grad_norm"]) and math.isfinite(line["loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_leaves_weights_moments_and_count(dtype: torch.dtype) -> None:
    """Which the host learns of afterwards. Also the first one, before which there are no moments."""
    engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME, dtype)).train(), OptimConfig(lr=1e-2))
    batch = pack([random_pairs(2).pair(0)], score_prompts=False)

    def held() -> list[bytes]:
        low = [weight.detach().float().numpy().tobytes() for weight in engine.policy.parameters()]
        return low + [part.numpy().tobytes() for piece in engine.pieces() for part in piece[2:]]

    def step(factor: float) -> float:
        engine.backward(-engine.forward(batch).sum() * factor, last=True)
        return float(engine.step(1e-2))

    for updates in range(2):
        before = held()
        for factor in (math.nan, math.inf):
            assert not math.isfinite(step(factor))
            assert held() == before and engine.updates == updates
        assert math.isfinite(step(1.0))
        assert held() != before and engine.updates == updates + 1
