"""Sweeps over runs on rollouts: what may vary, and what its trials are compared by."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orpo_ray.config import SweepConfig, parse_as
from orpo_ray.config.comparable import settings_of
from orpo_ray.errors import UserError

TRAIN: dict[str, Any] = {
    "name": "any",
    "model": {"name_or_path": "toy"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
    "objective": {"name": "ppo"},
    "rollouts": {
        "max_tokens": 48,
        "rewards": {"reward": {"path": "runs/reward"}, "truth": {"path": "toy", "weight": 0}},
    },
    "train": {"max_steps": 64},
}
BY_TRUTH = "eval_reward/truth"
WEIGHED = "of the rewards that the space varies"


def sweep(space: dict[str, str], metric: str = BY_TRUTH, **keys: Any) -> SweepConfig:
    return parse_as(
        SweepConfig, {"name": "sweep", "train": TRAIN, "space": space, "metric": metric, **keys}, [], "sweep.yaml"
    )


@pytest.mark.parametrize(
    ("key", "values", "metric"),
    [
        ("objective.kl_coefficient", "loguniform(0.01, 1)", "eval_reward"),
        ("objective.gae_lambda", "uniform(0.9, 1)", BY_TRUTH),
        ("objective.name", "choice(rloo, grpo)", BY_TRUTH),
        ("rollouts.samples", "choice(2, 4, 8)", "eval_reward"),
        ("rollouts.prompts", "choice(64, 128)", "eval_reward/reward"),
        ("rollouts.cut_penalty", "uniform(0, 1)", "eval_reward"),
        ("rollouts.clip_scores", "choice(1, 10)", "eval_reward"),
        ("rollouts.rewards.truth.weight", "uniform(0, 1)", BY_TRUTH),
        ("rollouts.rewards.reward.path", "choice(runs/a, runs/b)", BY_TRUTH),
        ("optim", "choice({lr: 1e-5}, {lr: 1e-4, schedule: linear})", "eval_reward"),
    ],
)
def test_settings_of_rollouts_vary(key: str, values: str, metric: str) -> None:
    space = {key: values, "optim.lr": "loguniform(1e-6, 1e-4)"} | (
        {"rollouts.samples": "choice(2, 4)"} if key == "objective.name" else {}
    )
    config = sweep(space, metric)
    first = config.dimensions[key].values[0]
    trial = config.training({**config.first_point, key: first}, "trial", config.storage)
    if key != "optim":
        assert dict(settings_of(trial))[key] == first
    assert (trial.train.keep_by, trial.train.keep_mode) == (metric, "max")


@pytest.mark.parametrize(
    ("key", "values", "metric", "told"),
    [
        ("rollouts.rewards.reward.weight", "uniform(0.5, 2)", "eval_reward", WEIGHED),
        ("rollouts.rewards.truth.path", "choice(toy, runs/a)", BY_TRUTH, WEIGHED),
        ("rollouts.max_tokens", "choice(32, 64)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.temperature", "uniform(0.5, 1)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.eval_prompts", "choice(8, 64)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.rewards.reward", "choice(runs/a, runs/b)", "eval_reward", WEIGHED),
        ("rollouts.rewards.truth", "choice(toy, runs/a)", BY_TRUTH, WEIGHED),
        ("rollouts.rewards.truth", "choice({path: toy, weight: 0}, {path: runs/a, weight: 0})", BY_TRUTH, WEIGHED),
        ("rollouts.rewards", "choice({truth: toy}, {truth: toy, reward: runs/a})", "eval_reward", WEIGHED),
        ("rollouts.rewards", "choice({truth: toy}, {truth: runs/a})", BY_TRUTH, WEIGHED),
        ("rollouts.rewards", "choice({truth: toy}, {other: toy})", BY_TRUTH, "rollouts.rewards has no truth"),
        ("rollouts", "choice({max_tokens: 32, rewards: {truth: toy}})", BY_TRUTH, "decides how held-out"),
        (
            "objective.name",
            "choice(ppo, rloo)",
            BY_TRUTH,
            "space.objective.name: trials would differ in how many p",
        ),
        (
            "objective.name",
            "choice(ppo, rloo)",
            BY_TRUTH,
            "set rollouts.epochs, which follow from the objective, leave",
        ),
        ("objective", "choice({name: ppo}, {name: grpo})", BY_TRUTH, "set rollouts.epochs, which follow from"),
        ("train", "choice({max_steps: 64}, {max_steps: 32})", BY_TRUTH, "set scheduler: none"),
        ("train", "choice({keep: last}, {keep: both})", BY_TRUTH, "space.train.keep: follows from"),
        ("objective.reference", "choice(runs/a, runs/b)", "eval_kl", "to the reference that the space varies"),
        ("rollouts.epochs", "choice(1, 4)", BY_TRUTH, "leave out train.max_steps, or set scheduler: none"),
        ("optim.lr", "choice(1, 4)", "eval_reward/other", "rollouts.rewards has no other"),
    ],
)
def test_what_cannot_be_compared_is_refused(key: str, values: str, metric: str, told: str) -> None:
    space = {key: values} | ({"rollouts.samples": "choice(2, 4)"} if key.startswith("objective") else {})
    with pytest.raises(UserError, match=re.escape(told)):
        sweep(space, metric)


def test_objectives_are_compared_on_as_many_prompts() -> None:
    """PPO trains four times on a round's responses and RLOO once: as many steps are not as many prompts."""
    space = {"objective.name": "choice(ppo, rloo)", "rollouts.samples": "choice(2, 4)"}
    epochs = {**TRAIN, "rollouts": {**TRAIN["rollouts"], "epochs": 2}}
    for alike in (epochs, {**TRAIN, "train": {"epochs": 2}}):
        assert not sweep(space, train=alike).unlike_lengths
    assert sweep(space, scheduler="none").unlike_lengths == ["objective.name"]


def test_a_weight_varies_though_its_reward_is_given_by_its_path_alone() -> None:
    short = {**TRAIN, "rollouts": {**TRAIN["rollouts"], "rewards": {"reward": "runs/reward", "truth": "toy"}}}
    found = sweep({"rollouts.rewards.reward.weight": "choice(0.5, 1, 2)"}, train=short)
    assert found.own_point == {"rollouts.rewards.reward.weight": 1}
    trial = found.training({"rollouts.rewards.reward.weight": 2}, "any", found.storage)
    assert trial.rollouts is not None
    assert {label: (one.path, one.weight) for label, one in trial.rollouts.rewards.items()} == {
        "reward": ("runs/reward", 2), "truth": ("toy", 1),
    }  # fmt: skip


def test_a_reward_of_weight_1_is_the_runs_own_too() -> None:
    """It is written as its path alone; the first trial is the run as it stands all the same."""
    space = {
        "rollouts.rewards.reward.weight": "choice(0.5, 1, 2)",
        "rollouts.rewards.reward.path": "choice(runs/reward)",
    }
    assert sweep(space).own_point == {
        "rollouts.rewards.reward.weight": 1,
        "rollouts.rewards.reward.path": "runs/reward",
    }


def test_epochs_of_rollouts_vary_where_no_trial_is_stopped_early() -> None:
    assert sweep({"rollouts.epochs": "choice(1, 4)"}, scheduler="none").unlike_lengths == ["rollouts.epochs"]


def test_a_run_of_its_own_keeping_is_refused_still() -> None:
    train = {**TRAIN, "train": {**TRAIN["train"], "keep_by": "eval_kl", "keep_mode": "min"}}
    with pytest.raises(UserError, match=r"train\.keep_by: eval_kl is not the sweep's metric"):
        sweep({"optim.lr": "choice(1, 4)"}, train=train)
