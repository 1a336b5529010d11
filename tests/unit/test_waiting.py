"""What is said of actors and workers that no node has room for."""

from __future__ import annotations

import threading

import pytest

from orpo_ray.cluster import waiting
from orpo_ray.cluster.waiting import Waiting, saying_what_waits, what_waits


@pytest.mark.parametrize(
    ("asked", "nodes", "line"),
    [
        (
            [Waiting("1 of 2 vLLM engines", 24)], [(16, 0)] * 3,
            "1 of 2 vLLM engines (24 CPUs each); the largest of 3 nodes has 16 CPUs, so no node can hold that",
        ),
        (
            [Waiting("1 worker", 1), Waiting("2 scorers", 4, 0.5)], [(64, 0), (8, 1)],
            "1 worker (1 CPU each) and 2 scorers (4 CPUs and 0.5 GPU each); the largest of 2 nodes has 8 CPUs and "
            "1 GPU, so others hold what is missing",
        ),
        ([Waiting("1 worker", 1, 2)], [(8, 1)],
         "1 worker (1 CPU and 2 GPUs each); the largest of 1 node has 8 CPUs and 1 GPU, so no node can hold that"),
        ([Waiting("4 workers", 1, 1, 4)], [(16, 2), (16, 1)],
         "4 workers (1 CPU and 1 GPU each); the largest of 2 nodes has 16 CPUs and 2 GPUs, and all have places for 3 "
         "of 4"),
        ([Waiting("4 workers", 1, 1, 4)], [(16, 2), (16, 2)],
         "4 workers (1 CPU and 1 GPU each); the largest of 2 nodes has 16 CPUs and 2 GPUs, so others hold what is "
         "missing"),
        ([Waiting("1 worker", 1)], [],
         "1 worker (1 CPU each); the largest of 0 nodes has 0 CPUs, so no node can hold that"),
    ],
)  # fmt: skip
def test_the_line_says_what_who_and_where(asked: list[Waiting], nodes: list[tuple[float, float]], line: str) -> None:
    assert what_waits(asked, nodes, 31.2) == f"not started for 31 s, for want of room: {line}"


def test_it_is_said_after_a_while_seldom_and_not_of_what_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "node_places", lambda: [(2.0, 0.0)])
    asks, said = iter([True, False, *[True] * 9]), []
    done = threading.Event()

    def found() -> list[Waiting]:
        more = next(asks, None)
        if more is None:
            done.set()
        return [Waiting("1 worker", 3)] if more else []

    monkeypatch.setattr(waiting, "_POLL", 0.01)
    with saying_what_waits(found, said.append, seconds=0.02):
        assert done.wait(10)
    assert len(said) == 3  # behind the one that started: after 2, 4 and 8 polls
    assert all("for want of room: 1 worker (3 CPUs each)" in line for line in said)
