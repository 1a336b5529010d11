"""Which trials stop early, and where: Ray Tune's rules, told results in the order of the trials.

Ray Tune tells its schedulers results as they arrive, so what ASHA stops depends on which of two trials was the faster.
Here a trial is compared with those before it, whenever their results came: the decisions follow from the curves alone,
and are the same for any number of trials at a time, and after any interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from orpo_ray.config import SweepConfig

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

_TIME, _VALUE = "time", "value"


@dataclass(frozen=True)
class Curve:
    """What is known of a trial."""

    points: Sequence[tuple[int, float]]
    """Steps and values of its evaluations, by step."""
    over: bool
    """No more will come."""
    length: int | None = None
    """Steps of the whole trial; default: as many as the sweep's run has."""


def early_stops(curves: Sequence[Curve], rule: TrialScheduler, last: int) -> list[int | None]:
    """At which step each trial is stopped, by a fresh `rule` of Ray Tune; None: nowhere, or not decided yet.

    A trial's point is decided once all trials before it are over or known as far. At `last`, where trials end by
    themselves, nothing is stopped. Trials of other batch sizes are compared at the same pairs seen, which is the same
    share of each: the rule's time is in steps of a run of `last` steps.
    """
    stops: list[int | None] = []
    known = math.inf  # how far all trials before are known
    for number, curve in enumerate(curves):
        trial = _Named(str(number))
        rule.on_trial_add(_NoController(), trial)
        stop, decided = None, 0.0
        length = curve.length or last
        points = [(step * last / length, step, value) for step, value in curve.points if math.isfinite(value)]
        for time, step, value in points:
            if time > known or time >= last:
                break
            decided = time
            told = {_TIME: time, _VALUE: value}
            if rule.on_trial_result(_NoController(), trial, told) == rule.STOP:
                stop = step
                break
        stops.append(stop)
        waiting = [time for time, _, _ in points if decided < time < last and time > known]
        if stop is None and (waiting or not curve.over):
            known = min(known, decided if waiting else max((time for time, _, _ in points), default=0))
    return stops


def rule_of(config: SweepConfig, total_steps: int) -> Callable[[], TrialScheduler]:
    """Makes the rule that `config` names, anew for each call of `early_stops`."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    grace = config.grace_steps or max(1, total_steps // 10)
    shared: dict[str, Any] = {"time_attr": _TIME, "metric": _VALUE, "mode": config.mode, "grace_period": grace}
    if config.scheduler == "median":
        return partial(MedianStoppingRule, **shared)
    if config.scheduler == "asha" and grace < total_steps:
        return partial(ASHAScheduler, **shared, max_t=total_steps, reduction_factor=config.reduction)
    return partial(FIFOScheduler)


def rungs(config: SweepConfig, total_steps: int) -> list[int]:
    """The steps at which ASHA decides, each at the first evaluation from there on; none for other schedulers."""
    if config.scheduler != "asha":
        return []
    step = float(config.grace_steps or max(1, total_steps // 10))
    found = []
    while step < total_steps:
        found.append(math.ceil(step))
        step *= config.reduction
    return found


@dataclass(frozen=True)
class _Named:
    """All that the rules ask of a trial."""

    trial_id: str


class _NoController:
    def get_live_trials(self) -> list[Any]:
        return []
