"""The quickest part: one run that loses a worker, a node and its driver."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

from fault_harness import Nodes, Run, assert_same, moments
from fault_table import Scene, interrupt_driver, kill_rank, lose_node


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
