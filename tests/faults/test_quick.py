"""The quickest part: one run that loses a worker, a node and its driver, and one on rollouts that loses an engine and a
worker."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import Nodes, Run, assert_same, moments
from fault_table import Scene, interrupt_driver, kill_rank, lose_node
from rollout_faults import LOSSES, MOMENTS, PPO


def test_worker_node_and_driver_lost(
    nodes: Nodes, base: Path, undisturbed: Callable[[tuple[str, ...]], Run], seed: int
) -> None:
    expected = undisturbed(())
    rng = random.Random(seed)
    run = Run(nodes, base, "quick")
    scene = Scene(run, nodes, rng, small=base.parent, data=base.parent / "train.jsonl")
    faults = [kill_rank(rng.randrange(2)), lose_node, interrupt_driver(signal.SIGKILL)]
    try:
        run.type_command()
        for bring, moment in zip(faults, moments(rng, 1, 30), strict=True):
            scene.meet(bring, moment)
        assert run.ends() == 0, run.said()[-4000:]
    finally:
        run.stop()
    assert_same(run, expected)


@pytest.mark.long
def test_engine_and_worker_lost_on_rollouts(
    nodes: Nodes, base: Path, undisturbed: Callable[[tuple[str, ...]], Run], seed: int
) -> None:
    settings = (
        *PPO, "train.max_steps=8", "rollouts.samples=1", "rollouts.max_tokens=24", "rollouts.eval_prompts=2",
    )  # fmt: skip
    expected = undisturbed(settings)
    rng = random.Random(seed)
    run = Run(nodes, base, "quick-rollouts", settings)
    try:
        run.type_command()
        MOMENTS["rollout"](run, 0, rng)
        LOSSES["engine"](run, nodes, rng)
        MOMENTS["update"](run, 1, rng)
        LOSSES["worker"](run, nodes, rng)
        assert run.ends() == 0, run.said()[-4000:]
    finally:
        run.stop()
    assert_same(run, expected)
