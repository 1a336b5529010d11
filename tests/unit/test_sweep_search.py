"""Which trials a sweep has, and which it stops: functions of the seed and of the trials' curves."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from orpo_ray.config import SweepConfig, load_sweep, parse_as
from orpo_ray.config.space import parse_dimension
from orpo_ray.errors import UserError
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.stopping import Curve, early_stops, rule_of, rungs

TRAIN: dict[str, Any] = {
    "name": "any",
    "model": {"name_or_path": "toy"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
    "optim": {"lr": 1e-3},  # outside of the space: all trials are drawn
}
SWEEP: dict[str, Any] = {
    "name": "sweep", "train": TRAIN,
    "space": {"objective.lambda": "loguniform(0.02, 2)", "optim.lr": "loguniform(1e-6, 5e-5)"},
}  # fmt: skip
HELD_OUT: dict[str, Any] = {"train": "toy", "eval": [{"source": "toy-test", "name": name} for name in "ab"]}


def config(*overrides: str, **keys: Any) -> SweepConfig:
    return parse_as(SweepConfig, {**SWEEP, **keys}, list(overrides), "sweep.yaml")


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("loguniform(0.02, 2)", "loguniform", (0.02, 2)),
        (" uniform( -1 , 1e-3 ) ", "uniform", (-1, 1e-3)),
        ("choice(cosine, linear)", "choice", ("cosine", "linear")),
        ("grid(1e-6, 2, true, null)", "grid", (1e-6, 2, True, None)),
    ],
)
def test_expressions(text: str, kind: str, values: tuple[Any, ...]) -> None:
    assert (parse_dimension(text).kind, parse_dimension(text).values) == (kind, values)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"space": {"optim.lr": "loguniform(0, 1)"}}, "space: optim.lr: loguniform: both ends should be above 0"),
        ({"space": {"optim.lr": "unifrom(0, 1)"}}, "space: optim.lr: expected loguniform(low, high), uniform("),
        ({"space": {"optim.lr": "uniform(1, 0)"}}, "space: optim.lr: uniform: the first end should be below"),
        ({"space": {"optim.lr": "uniform(a, b)"}}, "space: optim.lr: uniform takes two numbers"),
        ({"space": {"optim.lr": "choice(1, 1)"}}, "space: optim.lr: choice takes one or more different values"),
        ({"space": {"optim.lr": "choice([1, 2)"}}, "space: optim.lr: the values in"),
        ({"space": {"optim.lrr": "uniform(1, 2)"}}, "unknown key optim.lrr; did you mean optim.lr?"),
        ({"space": {"optim.lr": "uniform(-1, 2)"}}, "optim.lr: should be greater than 0 (got -1)"),
        ({"space": {"name": "choice(a, b)"}}, "space.name: is each trial's own"),
        ({"metric": "eval_loss"}, "metric: eval_loss holds the objective's own weights"),
        ({"train": {**TRAIN, "data": HELD_OUT}, "metric": "eval_loss/a"},
         "metric: eval_loss holds the objective's own"),
        ({"train": {**TRAIN, "data": HELD_OUT}, "metric": "eval_nll/c"},
         "eval_nll/c: no held-out pairs are of c: there "
         "are a, b"),
        ({"metric": "eval_nll/toy"}, "metric: eval_nll/toy: no held-out pairs are of toy: they are of one source"),
        ({"metric": "loss"}, "metric: String should match"),
        ({"metric": "eval_win_rate"}, "metric: eval_win_rate needs train.eval.win_rate"),
        ({"trade_off": {"eval_nll": "min"}}, "trade_off: a scheduler stops trials by one number alone; set"),
        ({"scheduler": "none", "trade_off": {"eval_reward_accuracy": "min"}}, "trade_off: eval_reward_accuracy is the"),
        ({"scheduler": "none", "trade_off": {"eval_loss": "min"}}, "eval_loss holds the objective's own weights"),
        ({"metric": "eval_nll"}, "mode: the highest eval_nll is the worst; set min"),
        ({"mode": "min"}, "mode: the lowest eval_reward_accuracy is the worst; set max"),
        ({"scheduler": "none", "trade_off": {"eval_nll": "max"}}, "trade_off.eval_nll: the highest eval_nll is"),
        ({"scheduler": "none", "trade_off": {"eval_nll": "down"}}, "trade_off.eval_nll: should be 'min' or 'max'"),
        ({"searcher": "grid"}, "space.objective.lambda: loguniform(…) is not for searcher: grid, which takes grid(…)"),
        ({"space": {"optim.lr": "grid(1, 2)"}}, "space.optim.lr: grid(…) is not for searcher: random"),
        ({"keep": 1, "finalists": {"against": "x", "reward_model": "toy"}}, "keep: 1 is fewer than the 3 finalists"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_its_key(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        config(**keys)
    assert str(error.value).startswith("sweep.yaml: ") and "\n" not in str(error.value)
    assert told in str(error.value)


def test_a_sweep_may_weigh_sources_and_compare_by_one() -> None:
    sources = [{"source": "toy", "name": name, "weight": 1} for name in "ab"]
    data = {"train": sources, "max_length": 128, "max_prompt_length": 64}
    found = config(
        train={**TRAIN, "data": data}, space={"data.train.1.weight": "uniform(0.5, 8)"}, metric="eval_nll/b", mode="min"
    )
    assert found.directions == {"eval_nll/b": "min"}
    assert searcher_of(found).settings(0, []) == {"data.train.1.weight": 1}  # the run's own


ON_ROLLOUTS: dict[str, Any] = {
    **TRAIN, "objective": {"name": "ppo"},
    "rollouts": {"max_tokens": 48, "rewards": {"truth": "toy", "rule": "rules.py:short"}},
}  # fmt: skip


def on_rollouts(*overrides: str, **keys: Any) -> SweepConfig:
    space = {"objective.kl_coefficient": "uniform(0.01, 0.2)"}
    return config(*overrides, **{"train": ON_ROLLOUTS, "space": space, "metric": "eval_reward", **keys})


@pytest.mark.parametrize("metric", ["eval_reward", "eval_reward/rule"])
def test_runs_on_rollouts_are_ranked_on_all_held_out_prompts(metric: str) -> None:
    found = on_rollouts(metric=metric, space={"rollouts.samples": "choice(1, 2)", "rollouts.epochs": "choice(1, 4)"})
    run = found.training({"rollouts.samples": 2}, "007", found.storage)
    assert (run.data.unseen_fraction, run.train.keep_by, run.train.keep_mode) == (None, metric, "max")
    assert run.rollouts is not None
    assert run.rollouts.samples == 2


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"metric": "eval_reward/other"}, "metric: eval_reward/other: rollouts.rewards has no other: there are truth"),
        ({"finalists": {"against": "x", "reward_model": "toy"}}, "finalists: answer prompts that rank no trial"),
        ({"space": {"rollouts.temperature": "uniform(0.5, 1)"}}, "space.rollouts.temperature: decides how held-out"),
        ({"space": {"rollouts.max_tokens": "choice(32, 64)"}}, "are answered, so trials could not be compared"),
        ({"space": {"rollouts.epochs": "choice(1, 4)"}, "train": {**ON_ROLLOUTS, "train": {"max_steps": 9}}},
         "how many prompts they see"),
        ({"space": {"objective.name": "choice(ppo, orpo)"}}, "rollouts: orpo trains on the responses of data.train"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_sweep_over_rollouts_is_one_line(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        on_rollouts(**keys)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_the_run_is_a_file_or_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    own = load_sweep("configs/toy-sweep.yaml", ["train.optim.weight_decay=0.25", "trials=3"])
    run = own.training({"objective.lambda": 0.3}, "007", own.storage)
    assert (run.name, run.optim.weight_decay, run.scaling.num_workers) == ("007", 0.25, 1)
    assert run.objective.model_dump()["lambda_"] == 0.3


def test_random_trials_follow_from_seed_and_place_alone() -> None:
    first, again, longer, other = (
        [searcher_of(c).settings(i, []) for i in range(8)]
        for c in (config(), config(), config("trials=64"), config("seed=1"))
    )
    assert first == again == longer
    assert not any(a == b for a, b in zip(first, other, strict=True))
    drawn = [searcher_of(config()).settings(i, []) for i in range(400)]
    logs = sorted(math.log(settings["objective.lambda"]) for settings in drawn)
    assert all(0.02 <= settings["objective.lambda"] <= 2 for settings in drawn)
    assert logs[200] == pytest.approx((math.log(0.02) + math.log(2)) / 2, abs=0.3)  # even in the logarithm
    assert all(len(f"{settings['optim.lr']:e}".split("e")[0].rstrip("0")) <= 5 for settings in drawn)


def test_a_grid_is_all_its_points() -> None:
    """In its own order, or where trials are compared with those before them in one that the seed draws."""
    space = {"optim.lr": "grid(1e-6, 1e-5)", "optim.schedule": "grid(cosine, linear)"}
    points = [(1e-6, "cosine"), (1e-6, "linear"), (1e-5, "cosine"), (1e-5, "linear")]

    def tried(**keys: Any) -> list[tuple[Any, ...]]:
        grid = config(searcher="grid", space=space, **keys)
        assert grid.number_of_trials == 4
        return [tuple(searcher_of(grid).settings(i, []).values()) for i in range(4)]

    assert tried(scheduler="none") == points
    drawn = [tried(seed=seed) for seed in range(40)]
    assert drawn == [tried(seed=seed) for seed in range(40)]
    assert all(sorted(order) == sorted(points) for order in drawn)
    assert {order[0] for order in drawn} == {*points}


def test_optuna_repeats_itself_and_learns() -> None:
    pytest.importorskip("optuna")
    own = config(
        searcher="optuna",
        train={**TRAIN, "optim": {"schedule": "constant"}},
        space={"objective.lambda": "loguniform(0.01, 100)", "optim.schedule": "choice(cosine, linear)"},
    )

    def run(trials: int) -> list[dict[str, Any]]:
        searcher, outcomes, found = searcher_of(own), [], []
        for index in range(trials):
            found.append(searcher.settings(index, outcomes[: max(0, index - 1)]))
            value = -abs(math.log(found[-1]["objective.lambda"]))
            outcomes.append("lost" if index == 3 else {own.metric: value})
        return found

    found = run(40)
    assert found == run(40)
    distances = [abs(math.log(settings["objective.lambda"])) for settings in found]
    assert sum(distances[-15:]) < 0.5 * sum(distances[:15])


def test_optuna_seeks_a_trade_off() -> None:
    """Two metrics, best at λ = 0.1 and at λ = 10: what lies between is as good as can be, what lies outside is not."""
    pytest.importorskip("optuna")
    own = config(
        searcher="optuna", scheduler="none", trade_off={"eval_nll": "min"},
        space={"objective.lambda": "loguniform(1e-4, 1e4)"},
    )  # fmt: skip

    def run() -> list[float]:
        searcher, outcomes, found = searcher_of(own), [], []
        for index in range(60):
            found.append(math.log10(searcher.settings(index, outcomes)["objective.lambda"]))
            outcomes.append({"eval_reward_accuracy": -abs(found[-1] - 1), "eval_nll": abs(found[-1] + 1)})
        return found

    found = run()
    assert found == run()
    within = [abs(place) <= 1.05 for place in found]
    assert sum(within[-30:]) >= 20 > sum(within[:10]) * 3


STEPS = [8, 16, 24, 32, 40, 48, 56, 64, 72]


def curves(trials: int, seed: int) -> list[Curve]:
    generator = random.Random(seed)
    return [Curve([(step, generator.random() + step / 100) for step in STEPS], over=True) for _ in range(trials)]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
@pytest.mark.parametrize("seed", range(20))
def test_stops_do_not_depend_on_what_arrives_when(scheduler: str, seed: int) -> None:
    """Trials run by fours, at random speeds; whatever is decided on the way is what is decided in the end."""
    own = config(scheduler=scheduler, grace_steps=8)
    rule = rule_of(own, STEPS[-1])
    whole = curves(12, seed)
    final = early_stops(whole, rule(), STEPS[-1])
    assert any(final) and not all(final)
    generator = random.Random(seed + 1)
    known = [0] * 12
    while True:
        seen = [Curve(c.points[:n], over=n == len(STEPS)) for c, n in zip(whole, known, strict=True)]
        stops = early_stops(seen, rule(), STEPS[-1])
        assert all(stop in (None, last) for stop, last in zip(stops, final, strict=True))
        running = [i for i in range(12) if stops[i] is None and known[i] < len(STEPS)][:4]
        if not running:
            break
        known[generator.choice(running)] += 1
    assert stops == final


def test_asha_stops_what_is_not_among_the_best_third() -> None:
    own = config(grace_steps=8)
    assert rungs(own, 72) == [8, 24]
    values = [0.5, 0.4, 0.6, 0.55, 0.61]
    flat = [Curve([(step, value) for step in STEPS], over=True) for value in values]
    # The first is compared with none, later ones with those before.
    assert early_stops(flat, rule_of(own, 72)(), 72) == [None, 8, None, 24, None]
    falling = config(grace_steps=8, metric="eval_nll", mode="min")
    assert early_stops(flat, rule_of(falling, 72)(), 72) == [None, None, 8, 8, 8]


def test_median_stops_what_is_worse_than_half_of_those_before() -> None:
    own = config(scheduler="median", grace_steps=16)
    flat = [Curve([(step, value) for step in STEPS], over=True) for value in (0.5, 0.4, 0.6, 0.45, 0.55)]
    assert early_stops(flat, rule_of(own, 72)(), 72) == [None, None, None, 16, None]


def test_a_failed_trial_holds_nothing_up() -> None:
    own = config(grace_steps=8)
    broken, running = Curve([(8, 0.9), (16, math.nan)], over=True), Curve([(8, 0.5)], over=False)
    after = Curve([(step, 0.1) for step in STEPS], over=True)
    assert early_stops([broken, running, after], rule_of(own, 72)(), 72) == [None, 8, 8]
    none = Curve([], over=True)
    assert early_stops([none, after], rule_of(own, 72)(), 72) == [None, None]


def test_no_scheduler_stops_nothing() -> None:
    own = config(scheduler="none")
    assert early_stops(curves(12, 0), rule_of(own, 72)(), 72) == [None] * 12
    assert rungs(own, 72) == []


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_the_first_trial_is_the_run_as_it_stands(searcher: str) -> None:
    """So what wins is at least as good by the metric."""
    own = {"objective.lambda": 0.3, "optim.lr": 2e-5, "optim.schedule": "linear"}
    run = {**TRAIN, "objective": {"lambda": 0.3}, "optim": {"lr": 2e-5, "schedule": "linear"}}
    space = {**SWEEP["space"], "optim.schedule": "choice(cosine, linear)"}
    found = searcher_of(config(train=run, space=space, searcher=searcher))
    assert found.settings(0, []) == own
    assert found.settings(1, []) != own
    outside = config(train={**run, "optim": {"lr": 1e-3}}, space=space, searcher=searcher)
    assert outside.own_point is None and searcher_of(outside).settings(0, [])["optim.lr"] <= 5e-5
