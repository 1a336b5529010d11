"""A worker, the driver, an engine, killed at five seeded moments of a run on rollouts, which ends as if nothing had
been (issue 19)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import Nodes, Run, assert_same
from rollout_faults import BY_VLLM, LOSSES, MOMENTS, PPO

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("lost", "settings"),
    [("worker", PPO), ("driver", PPO), ("engine", PPO), ("engine", BY_VLLM)],
    ids=["worker", "driver", "engine", "vllm"],
)
def test_killed_at_five_moments_it_ends_as_if_nothing_had_been(
    lost: str,
    settings: tuple[str, ...],
    nodes: Nodes,
    base: Path,
    undisturbed: Callable[[tuple[str, ...]], Run],
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    expected = undisturbed(settings)
    rng = random.Random(f"{seed} {lost}")
    moments = [*MOMENTS]
    rng.shuffle(moments)
    run = Run(nodes, base, f"rollouts-{request.node.callspec.id}", settings)
    try:
        run.type_command()
        for round, moment in enumerate(moments):
            MOMENTS[moment](run, round, rng)
            print(f"{run.name}: {lost} lost in {moment} of round {round}, step {run.step()}", flush=True)
            LOSSES[lost](run, nodes, rng)
        assert run.ends() == 0, run.said()[-4000:]
    finally:
        run.stop()
    assert_same(run, expected)
