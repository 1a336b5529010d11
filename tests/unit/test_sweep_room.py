"""How many trials run at a time, and how long they are."""

from __future__ import annotations

import pytest
from test_sweep_search import config

from orpo_ray.errors import UserError
from orpo_ray.tuning.comparable import steps_of_trials
from orpo_ray.tuning.room import concurrency


@pytest.mark.parametrize(
    ("overrides", "cluster", "expected"),
    [
        ([], {"CPU": 2}, 2),
        (["trials=1"], {"CPU": 2}, 1),
        (["train.scaling={cpus_per_worker: 0.9}"], {"CPU": 2}, 2),
        (["train.scaling={num_workers: 2}"], {"CPU": 9}, 4),
        ([], {"CPU": 64, "GPU": 8}, 8),
        (["train.scaling={num_workers: 4}"], {"CPU": 64, "GPU": 8}, 2),
        (["train.scaling={gpus_per_worker: 0.25}"], {"CPU": 64, "GPU": 2}, 8),
        (["train.scaling={use_gpu: false}"], {"CPU": 12.5, "GPU": 1}, 12),
        (["concurrency=3"], {"CPU": 64, "GPU": 8}, 3),
        (["concurrency=30"], {"CPU": 64, "GPU": 8}, 8),
        (["train.eval={win_rate: {against: x, reward_model: toy}}"], {"CPU": 7}, 2),
    ],
)
def test_as_many_as_there_is_room_for(overrides: list[str], cluster: dict[str, float], expected: int) -> None:
    own = config(*overrides)
    assert concurrency(own, own.training({}, "any", own.storage), cluster) == expected


def test_no_room_is_one_line() -> None:
    own = config("train.scaling={num_workers: 4, use_gpu: true}")
    with pytest.raises(UserError, match=r"a trial takes 4 CPUs and 4 GPUs, and the cluster has 8 and 2"):
        concurrency(own, own.training({}, "any", own.storage), {"CPU": 8, "GPU": 2})


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"optim.lr": "choice(1e-5, 1e-4)"}, "40 steps"),
        ({"train.max_steps": "choice(12, 70, 30)"}, "12 to 70 steps"),
        ({"train.epochs": "choice(1, 3)", "train.global_batch_size": "choice(64, 32)"}, "40 to 240 steps"),
        ({"data.limit": "choice(640, 1280)"}, "unlike numbers of steps"),
    ],
)
def test_the_first_line_says_how_long_trials_are(space: dict[str, str], told: str) -> None:
    assert steps_of_trials(config(space=space, scheduler="none"), range(40 * 64)) == told  # type: ignore[arg-type]
