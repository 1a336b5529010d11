"""A cluster for all tests of a session, and the runs that nothing disturbs."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_harness import Nodes, Run, write_base

# Ray reads this once, when it is imported: so these tests have a pytest process of their own.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
os.environ["HF_TOKEN"] = f"hf_{secrets.token_hex(16)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="decides the moments of faults and what they leave open")
    parser.addoption("--results", type=Path, help="JSON file that receives what was found")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    chosen: int = request.config.getoption("--seed")
    return chosen


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest, seed: int) -> Callable[[dict[str, Any]], None]:
    """Puts the entry of one fault into the file of results."""
    path: Path | None = request.config.getoption("--results")

    def put(entry: dict[str, Any]) -> None:
        if path is None:
            return
        from orpo_ray.bench.results import machine

        held = json.loads(path.read_text())["faults"] if path.is_file() else {}
        held[entry["fault"]] = {"seed": seed, **entry}
        result = {"kind": "faults", "machine": machine(torch.device("cpu")), "faults": held}
        path.write_text(json.dumps(result, indent=1) + "\n")

    return put


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.replenish()
    return cluster


@pytest.fixture(scope="session")
def undisturbed(cluster: Nodes, base: Path) -> Callable[[tuple[str, ...]], Run]:
    """The finished run under these settings that nothing disturbed."""
    runs: dict[tuple[str, ...], Run] = {}

    def of(settings: tuple[str, ...]) -> Run:
        if settings not in runs:
            cluster.replenish()
            run = Run(cluster, base, f"undisturbed-{len(runs)}", settings)
            try:
                run.type_command()
                assert run.ends() == 0, run.said()[-4000:]
            finally:
                run.stop()
            runs[settings] = run
        return runs[settings]

    return of
