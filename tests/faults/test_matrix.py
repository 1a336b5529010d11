"""Every fault, at seeded moments of a run that ends as if nothing had been: `make faults`."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_harness import Nodes, Run, assert_same, moments
from fault_table import FAULTS, Fault, Scene

pytestmark = pytest.mark.long
SMALL = 96  # MiB; a checkpoint has twelve


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}m", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("mounting a filesystem is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_run_ends_as_if_nothing_had_been(
    fault: Fault,
    nodes: Nodes,
    base: Path,
    undisturbed: Callable[[tuple[str, ...]], Run],
    record: Callable[[dict[str, Any]], None],
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    expected = undisturbed(fault.settings)
    rng = random.Random(f"{seed}/{fault.name}")
    name = fault.name.replace(" ", "-").replace(",", "").replace("'", "")
    data = base.parent / f"{name}.jsonl"
    shutil.copy(base.parent / "train.jsonl", data)
    storage = request.getfixturevalue("small") if fault.small_storage else base.parent
    more = (f"storage.checkpoints={storage}",) if fault.small_storage else ()
    run = Run(nodes, base, name, (f"data.train={data}", *fault.settings, *fault.more, *more))
    scene = Scene(run, nodes, rng, storage, data)
    try:
        run.type_command()
        drawn = moments(rng, fault.first, fault.last)
        met = [scene.meet(fault.bring, moment, restarts=fault.restarts) for moment in drawn]
        assert run.ends() == 0, run.said()[-4000:]
    finally:
        run.stop()
    assert_same(run, expected, tolerance=fault.tolerance)
    record({
        "fault": fault.name, "how": fault.how, "moments": met,
        "verdict": f"weights within {fault.tolerance:g}" if fault.tolerance else "equal in every bit",
    })  # fmt: skip
