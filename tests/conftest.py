"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any of the libraries is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS_BETWEEN_METRICS = 6  # more than orpo_ray takes to set a gauge anew


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; not part of the product."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: it holds the real data that this test needs")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster of this machine for all tests, as `orpo-ray` starts it."""
    from orpo_ray.cluster.connection import connect, disconnect

    # Ray sends metrics on every ten seconds, and forgets a gauge after two times that: a test waits for it.
    interval = {"RAY_metrics_report_interval_ms": str(1000 * SECONDS_BETWEEN_METRICS)}
    os.environ |= interval
    connect(cpus=4)
    for name in interval:
        del os.environ[name]
    yield
    disconnect()


@pytest.fixture(scope="session")
def beside_tests(ray_cluster: None) -> dict[str, str]:
    """The environment of a command that finds the tests' cluster, and so need not start one."""
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
