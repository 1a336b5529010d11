"""What workers take of a cluster, where that is left open."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_ray.cluster import share
from orpo_ray.cluster.share import cpus_of_a_worker, require_gpus, too_few_gpus
from orpo_ray.config import ScalingConfig
from orpo_ray.errors import UserError

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


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"use_gpu": True}, 0, "scaling.use_gpu: 1 worker with a GPU each, and this machine has 0; set RAY_ADDRESS"),
        ({"use_gpu": True, "num_workers": 4}, 2, "scaling.use_gpu: 4 workers with a GPU each, and this machine has 2"),
        ({"use_gpu": True, "num_workers": [2, 4]}, 2, ""),
        ({"use_gpu": True, "gpus_per_worker": 0.5}, 1, ""),
        ({"num_workers": 4}, 2, ""),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_gpus_that_this_machine_will_never_have_are_told_at_once(
    settings: dict[str, Any], gpus: int, message: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "connect", lambda cpus: None)
    monkeypatch.setattr(share, "is_own", lambda: own)
    monkeypatch.setattr(share, "cluster_nodes", lambda: [(8.0, float(gpus))])
    scaling = ScalingConfig.model_validate(settings)
    if not own or not message:  # another cluster may get more nodes
        require_gpus(scaling, 1)
        return
    with pytest.raises(UserError) as error:
        require_gpus(scaling, 1)
    assert str(error.value).startswith(message)


def test_gpus_that_stay_idle_are_told() -> None:
    said = too_few_gpus(ScalingConfig(num_workers=8), 4)
    assert said.startswith("trains on CPUs: the cluster has 4 GPUs for 8 workers; scaling.num_workers=4 uses them")
    for settings, gpus in (({}, 0), ({"num_workers": 4}, 4), ({"num_workers": 8, "use_gpu": True}, 4)):
        assert not too_few_gpus(ScalingConfig.model_validate(settings), gpus)
