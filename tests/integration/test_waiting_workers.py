"""Groups of workers that Ray has no room for, on a real cluster."""

from __future__ import annotations

import pytest

from orpo_ray.cluster.groups import groups_without_room, waiting_workers
from orpo_ray.cluster.waiting import Waiting

ASKED = 4000.0  # CPUs


def test_a_group_waits_until_one_has_its_place(ray_cluster: None) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    waiting = waiting_workers(2, ASKED, 0)
    assert waiting() == [Waiting("2 workers", ASKED, 0, 2)], "an elastic run makes no request before there is room"
    group = placement_group([{"CPU": ASKED}] * 3)
    try:
        assert groups_without_room() == ([Waiting("3 workers", ASKED, 0, 3)], 0)
        assert waiting() == [Waiting("3 workers", ASKED, 0, 3)]
    finally:
        remove_placement_group(group)
    assert waiting() == [Waiting("3 workers", ASKED, 0, 3)], "Ray Train is about to ask again"
    group = placement_group([{"CPU": 1}])
    try:
        assert group.wait(30)
        assert waiting() == [] and groups_without_room() == ([], 1)
    finally:
        remove_placement_group(group)
    assert not waiting_workers(1, 1, 0)(), "it is on its way"


@pytest.mark.parametrize("asked", [{"memory": 2**20}, {"CPU": 0.5}])
def test_what_has_room_or_asks_for_none_does_not_wait(ray_cluster: None, asked: dict[str, float]) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([asked])
    try:
        assert group.wait(30)
        assert groups_without_room()[0] == []
    finally:
        remove_placement_group(group)
