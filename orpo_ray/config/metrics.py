"""Metrics of an evaluation by name, and which way each is better."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field

METRIC = r"^eval_[a-z_]+(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
Metric = Annotated[str, Field(pattern=METRIC)]
"""A key of an evaluation's line; with `/NAME` that of one of several sources."""
Direction = Literal["min", "max"]
WIN_RATE = "eval_win_rate"
"""Comes later than the evaluation of its step, from beside training."""
REWARD = "eval_reward"
"""Of what the policy in training writes; with `/LABEL` that of one of `rollouts.rewards`."""
UNSEEN = "eval_unseen_"
"""Begins the keys of the pairs that choose nothing (`data.unseen_fraction`)."""

_LOWER = {"loss", "nll", "calibration_error"}
_HIGHER = {
    "reward_accuracy", "reward_margin", "rewards_chosen", "logps_chosen", "log_odds_ratio", "log_probability_ratio",
    "win_rate", "reward",
}  # fmt: skip


def known_direction(metric: str) -> Direction | None:
    """Which way `metric` is better; None: that depends on what one is after."""
    name = metric.partition("/")[0].removeprefix("eval_")
    if name in _LOWER or name.endswith("_loss"):
        return "min"
    return "max" if name in _HIGHER else None


def like(metric: str) -> str | None:
    """The metric of known direction that is called almost as this one; None: there is none."""
    known = [f"eval_{name}" for name in sorted(_LOWER | _HIGHER)]
    return next(iter(get_close_matches(metric.partition("/")[0], known, n=1, cutoff=0.9)), None)


def require_choosing(key: str, metric: str) -> None:
    """Raises `ValueError`, naming the `key` that holds it, for a metric of the pairs that are to choose nothing."""
    if metric.startswith(UNSEEN):
        raise ValueError(f"{key}: {metric} is of the pairs that choose nothing (data.unseen_fraction)")


def of_unseen(metric: str) -> str:
    """The key of a metric over the pairs that choose nothing."""
    return UNSEEN + metric.removeprefix("eval_")


def spoken_name(metric: str) -> str:
    return "eval loss" if metric == "eval_loss" else metric


def spoken(metric: str, direction: Direction) -> str:
    """`lowest eval loss`."""
    return f"{'lowest' if direction == 'min' else 'highest'} {spoken_name(metric)}"
