"""What workers take of a cluster, where that is left open."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_ray.cluster.share import cpus_of_a_worker
from orpo_ray.config import ScalingConfig

CPUS = [(8.0, 0.0), (8.0, 0.0)]


@pytest.mark.parametrize(
    ("settings", "nodes", "spare", "expected"),
    [
        ({}, [(2.0, 0.0)], 0, 2),
        ({"num_workers": 2}, [(2.0, 0.0)], 0, 1),
        ({"num_workers": 5}, [(2.0, 0.0)], 0, 1),
        ({"num_workers": 2}, CPUS, 0, 8),
        ({"num_workers": 3}, CPUS, 0, 4),  # two on one node
        ({"num_workers": [1, 4]}, CPUS, 0, 4),
        ({"num_workers": 2}, CPUS, 2, 7),
        ({"num_workers": 2}, [(6.0, 0.0), (2.0, 0.0)], 0, 3),
        ({"num_workers": 2, "cpus_per_worker": 0.5}, CPUS, 0, 0.5),
        ({"num_workers": 8}, [(96.0, 8.0)], 0, 4),
        ({"num_workers": 8}, [(16.0, 8.0)], 0, 1),
        ({"num_workers": 2, "use_gpu": False}, [(96.0, 8.0)], 0, 48),
    ],
)
def test_cores_are_shared_out(
    settings: dict[str, Any], nodes: list[tuple[float, float]], spare: int, expected: float
) -> None:
    share = cpus_of_a_worker(ScalingConfig.model_validate(settings), nodes, spare=spare)
    assert share == expected
    room = sum(int(cpus // share) for cpus, _ in nodes)
    workers = ScalingConfig.model_validate(settings).most_workers
    assert share <= 1 or room >= workers, "every worker finds its place"
