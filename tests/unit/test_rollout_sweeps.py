"""Sweeps over runs on rollouts: what may vary, and what its trials are compared by."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orpo_ray.config import SweepConfig, parse_as
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


def sweep(space: dict[str, str], metric: str = BY_TRUTH, **keys: Any) -> SweepConfig:
    return parse_as(
        SweepConfig, {"name": "sweep", "train": TRAIN, "space": space, "metric": metric, **keys}, [], "sweep.yaml"
    )


@pytest.mark.parametrize(
    ("key", "values", "metric"),
    [
        ("objective.kl_coefficient", "loguniform(0.01, 1)", "eval_reward"),
        ("objective.gae_lambda", "uniform(0.9, 1)", BY_TRUTH),
        ("objective.name", "choice(ppo, rloo)", BY_TRUTH),
        ("rollouts.samples", "choice(2, 4, 8)", "eval_reward"),
        ("rollouts.prompts", "choice(64, 128)", "eval_reward/reward"),
        ("rollouts.cut_penalty", "uniform(0, 1)", "eval_reward"),
        ("rollouts.clip_scores", "choice(1, 10)", "eval_reward"),
        ("rollouts.rewards.truth.weight", "uniform(0, 1)", BY_TRUTH),
        ("rollouts.rewards.reward.path", "choice(runs/a, runs/b)", BY_TRUTH),
    ],
)
def test_settings_of_rollouts_vary(key: str, values: str, metric: str) -> None:
    space = {key: values, "optim.lr": "loguniform(1e-6, 1e-4)"} | (
        {"rollouts.samples": "choice(2, 4)"} if key == "objective.name" else {}
    )
    config = sweep(space, metric)
    first = config.dimensions[key].values[0]
    trial = config.training({**config.first_point, key: first}, "trial", config.storage)
    found: Any = trial
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == first
    assert (trial.train.keep_by, trial.train.keep_mode) == (metric, "max")


@pytest.mark.parametrize(
    ("key", "values", "metric", "told"),
    [
        ("rollouts.rewards.reward.weight", "uniform(0.5, 2)", "eval_reward", "of the rewards that the space varies"),
        ("rollouts.rewards.truth.path", "choice(toy, runs/a)", BY_TRUTH, "of the rewards that the space varies"),
        ("rollouts.max_tokens", "choice(32, 64)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.temperature", "uniform(0.5, 1)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.eval_prompts", "choice(8, 64)", BY_TRUTH, "decides how held-out prompts are answered"),
        ("rollouts.epochs", "choice(1, 4)", BY_TRUTH, "leave out train.max_steps, or set scheduler: none"),
        ("optim.lr", "choice(1, 4)", "eval_reward/other", "rollouts.rewards has no other"),
    ],
)
def test_what_cannot_be_compared_is_refused(key: str, values: str, metric: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        sweep({key: values}, metric)


def test_epochs_of_rollouts_vary_where_no_trial_is_stopped_early() -> None:
    assert sweep({"rollouts.epochs": "choice(1, 4)"}, scheduler="none").unlike_lengths == ["rollouts.epochs"]


def test_a_run_of_its_own_keeping_is_refused_still() -> None:
    train = {**TRAIN, "train": {**TRAIN["train"], "keep_by": "eval_kl", "keep_mode": "min"}}
    with pytest.raises(UserError, match=r"train\.keep_by: eval_kl is not the sweep's metric"):
        sweep({"optim.lr": "choice(1, 4)"}, train=train)
