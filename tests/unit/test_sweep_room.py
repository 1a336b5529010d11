"""How many trials run at a time, and how long they are."""

from __future__ import annotations

import itertools

import pytest
from test_sweep_search import config, on_rollouts

from orpo_ray.errors import UserError
from orpo_ray.training.rollout_setup import places
from orpo_ray.tuning.comparable import steps_of_trials
from orpo_ray.tuning.room import Share, concurrency, gpus_beside


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


@pytest.mark.parametrize("all_gpus", [0, 1, 2, 3, 8, 64])
@pytest.mark.parametrize("asked", ["auto", 1, 3])
@pytest.mark.parametrize("win_rate", [False, True])
def test_trials_on_rollouts_take_no_gpu_of_each_other(all_gpus: int, asked: int | str, win_rate: bool) -> None:
    """Whatever is free when one of them begins."""
    for workers, part, at_a_time in itertools.product([1, 2], [0.25, 1], ["auto", 1, 2, 3]):
        if workers > 1 and part < 1:
            continue
        own = on_rollouts(
            f"train.scaling={{num_workers: {workers}, gpus_per_worker: {part}}}", f"concurrency={at_a_time}",
            f"train.rollouts.gpus={asked}",
            *(["train.eval={win_rate: {against: x, reward_model: toy}}"] if win_rate else []),
        )  # fmt: skip
        run = own.training(own.first_point, "any", own.storage)
        try:
            trials = concurrency(own, run, {"CPU": 512, "GPU": all_gpus})
            run = Share(1, gpus_beside(run, trials, all_gpus)).given(run)
        except UserError:  # there is no room for one
            assert all_gpus < workers * part + (asked != "auto" and asked) + win_rate
            continue
        assert run.rollouts is not None and isinstance(run.rollouts.gpus, int)
        engines, each = places(run.rollouts, run.rollouts.gpus)
        on_gpus = all_gpus >= workers * part
        taken = on_gpus * (workers * part + win_rate) + (engines + 1) * each  # scorer included
        assert trials * taken <= all_gpus, (workers, part, trials)
        if on_gpus and asked == "auto" and at_a_time == 1:
            assert (engines + 1) * each == max(0, all_gpus - workers - win_rate), "what is left is used"


@pytest.mark.parametrize(
    ("gpus", "engines", "expected"),
    [
        (0, "auto", (1, 0)),
        (0, 2, (2, 0)),
        (1, "auto", (1, 0.5)),
        (2, "auto", (1, 1)),
        (5, "auto", (4, 1)),
        (5, 2, (2, 1)),
    ],
)
def test_engines_stand_on_what_a_trial_has(gpus: int, engines: int | str, expected: tuple[int, float]) -> None:
    own = on_rollouts(f"train.rollouts.engines={engines}")
    rollouts = Share(1, gpus).given(own.training(own.first_point, "any", own.storage)).rollouts
    assert rollouts is not None and places(rollouts, gpus) == expected


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
