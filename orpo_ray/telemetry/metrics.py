"""Numbers of a run, an evaluation or a sweep for Prometheus, by way of `ray.util.metrics`.

Ray exports them from each node, on its metrics port, with `ray_` before their names. Where Ray is not running, nothing
is recorded.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Key in a line of metrics.jsonl, by which `_gauge` names the metric, to what it is.
_OF_A_STEP = {
    "step": "Optimizer steps done.",
    "epoch": "Passes over the data done.",
    "loss": "Training loss of the last step.",
    "nll": "Negative log-likelihood of the last step.",
    "log_odds_ratio": "Log odds ratio of chosen over rejected, of the last step.",
    "reward_margin": "Reward margin of chosen over rejected, of the last step.",
    "reward_accuracy": "Share of the last step's pairs whose chosen response is preferred.",
    "lr": "Learning rate.",
    "grad_norm": "Norm of the last step's gradient, before clipping.",
    "pairs_per_second": "Pairs computed a second, by all workers; of rollouts responses.",
    "tokens_per_second": "Tokens computed a second, by all workers.",
    "mfu": "Share of the hardware's measured peak FLOP/s that is used.",
    "peak_memory_bytes": "Highest memory use of the first worker.",
}
_OF_AN_EVALUATION = {
    "eval_loss": "Loss on held-out pairs.",
    "eval_log_odds_ratio": "Log odds ratio on held-out pairs.",
    "eval_reward_accuracy": "Share of held-out pairs whose chosen response is preferred.",
    "eval_win_rate": "Win-rate of the last checkpoint that was compared.",
}
_OF_ROLLOUTS = {
    "value_loss": "Loss of the critic, of the last step.",
    "clip_fraction": "Share of the last step's tokens, of RLOO responses, whose probability ratio was clipped.",
    "approx_kl": "KL of the last step's policy to the one that wrote the responses, nats a token (k3).",
    "reward": "Mean reward of the last round's responses, as it is learned from.",
    "kl": "KL of the last round's responses to the reference model, nats a response.",
    "kl_coefficient": "What a nat of KL to the reference costs in reward.",
    "entropy": "Entropy of the last round's policy, nats a token.",
    "response_tokens": "Mean tokens of the last round's responses.",
    "share_cut": "Share of the last round's responses that were cut at the limit.",
    "explained_variance": "Share of the variance of the last round's returns that the critic explains.",
    "mismatch_mean": "Mean difference of a drawn token's log-prob by engine and trainer, of the last round.",
    "mismatch_max": "Largest difference of a drawn token's log-prob by engine and trainer, of the last round.",
    "mismatch_k3": "The same as a KL (k3), of the last round.",
    "rollout_tokens_per_second": "Tokens written a second, in the last round.",
    "score_tokens_per_second": "Tokens of responses scored a second, in the last round.",
    "eval_reward": "Mean reward of responses to held-out prompts.",
    "eval_kl": "KL of these to the reference model, nats a response.",
    "eval_response_tokens": "Mean tokens of these.",
    "eval_share_cut": "Share of these that were cut at the limit.",
    "eval_entropy": "Entropy of the policy on these, nats a token.",
}
"""But for the rewards of single sources (`reward/LABEL`), since Prometheus wants all names beforehand."""
_TRAINING = _OF_A_STEP | _OF_AN_EVALUATION | _OF_ROLLOUTS
_SKIPPED = "training_skipped_steps"
_CHECKPOINT = "training_checkpoint_step"
_RESPONSES, _RESPONSE_TOKENS = "generation_responses", "generation_tokens"
_JUDGED = "scoring_prompts"
_TRIALS, _BEST = "sweep_trials", "sweep_best_value"

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"training_{key}": (what, ("run", "trial")) for key, what in _TRAINING.items()},
    _CHECKPOINT: ("Step of the newest finished checkpoint.", ("run", "trial")),
    _TRIALS: ("Trials by what became of them: finished, stopped, failed, unfinished.", ("run", "status")),
    _BEST: ("Value of the sweep's metric, of the best trial so far.", ("run", "metric")),
}
"""Name without the prefix, to its description and tags."""
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    _SKIPPED: ("Steps left out since their loss or gradient was not finite.", ("run", "trial")),
    _RESPONSES: ("Responses generated.", ("run", "model")),
    _RESPONSE_TOKENS: ("Tokens of the responses generated.", ("run", "model")),
    _JUDGED: ("Prompts whose responses, of one model or the data, were judged by all reward models.", ("run",)),
}
"""As `GAUGES`; Prometheus sees their names with `_total` behind."""
PREFIX = "orpo_ray_"
_OF_RAY = "ray_"
_SECONDS_BETWEEN_REFRESHES = 5.0  # Ray forgets a gauge that was not set for 20


def exported() -> set[str]:
    """The names that Prometheus sees."""
    return {_OF_RAY + PREFIX + name for name in [*GAUGES, *(f"{name}_total" for name in COUNTERS)]}


def run_and_trial(folder: Path) -> tuple[str, str]:
    """The name of the run in `folder`; of a sweep's trial the sweep's name, and the trial's number."""
    if folder.parent.name == "trials":
        return folder.parent.parent.name, folder.name
    return folder.name, ""


def training_line(folder: Path, line: Mapping[str, Any]) -> None:
    """A line of `metrics.jsonl`; called where it is written."""
    run, trial = run_and_trial(folder)
    for key in _TRAINING:
        if key in line and (key != "step" or "loss" in line):
            _set(f"training_{key}", line[key], run=run, trial=trial)
    if "skipped" in line:
        _add(_SKIPPED, 1, run=run, trial=trial)


def checkpoint_finished(folder: Path, step: int) -> None:
    run, trial = run_and_trial(folder)
    _set(_CHECKPOINT, step, run=run, trial=trial)


def responses_generated(run: str, model: str, tokens: Iterable[int]) -> None:
    """`tokens`: of each response that has come."""
    counts = list(tokens)
    _add(_RESPONSES, len(counts), run=run, model=model)
    _add(_RESPONSE_TOKENS, sum(counts), run=run, model=model)


def prompts_judged(run: str, count: int) -> None:
    _add(_JUDGED, count, run=run)


def sweep_changed(run: str, statuses: Mapping[str, int], metric: str, best: float | None) -> None:
    """`statuses`: number of trials by status; `best`: None before any trial has a value."""
    for status, count in statuses.items():
        _set(_TRIALS, count, run=run, status=status)
    if best is not None:
        _set(_BEST, best, run=run, metric=metric)


def _set(name: str, value: Any, **tags: str) -> None:
    """A value that is not finite, as of a loss that has diverged, leaves a gap: the last one that was would hide it."""
    if _in_ray():
        finite = isinstance(value, (int, float)) and math.isfinite(value)
        _held[name, tuple(tags.items())] = float(value) if finite else math.nan
        _metric(name).set(_held[name, tuple(tags.items())], tags)
        _keep_fresh()


def _add(name: str, count: int, **tags: str) -> None:
    if count and _in_ray():
        _metric(name).inc(count, tags)


_held: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
"""Gauges as this process has set them, by name and tags."""


@cache
def _keep_fresh() -> None:
    """Set all gauges again and again, for as long as this process lives: a step may take longer than Ray remembers."""

    def refresh() -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_REFRESHES)
            for (name, tags), value in list(_held.items()):
                if _in_ray():
                    _metric(name).set(value, dict(tags))

    threading.Thread(target=refresh, name="orpo_ray-metrics", daemon=True).start()


def _in_ray() -> bool:
    """Ray is not imported for it: the training core runs without."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, (what, tags) = (metrics.Gauge, GAUGES[name]) if name in GAUGES else (metrics.Counter, COUNTERS[name])
    return kind(PREFIX + name, description=what, tag_keys=tags)
