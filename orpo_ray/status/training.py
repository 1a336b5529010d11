"""Where a training run stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orpo_ray.config import StorageConfig
from orpo_ray.errors import UserError
from orpo_ray.report.runs import Run, read_events, read_run
from orpo_ray.status.status import Status, again, age_of, driver_of, duration, figures, state_of
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.rounds import Rounds, RoundWatch, newest_file
from orpo_ray.storage.run_folder import KeptModel, RunFolder, kept_model

_RECENT = 20  # steps that speed is taken over
_RECENT_ROUNDS = 5
_EVENTS = 5
_HELD_OUT = {
    "loss": "eval_loss", "log odds ratio": "eval_log_odds_ratio", "margin": "eval_reward_margin",
    "accuracy": "eval_reward_accuracy", "win-rate": "eval_win_rate",
}  # fmt: skip
_OF_ROLLOUTS = {
    "reward": "eval_reward", "KL": "eval_kl", "tokens": "eval_response_tokens", "cut": "eval_share_cut",
    "entropy": "eval_entropy", "win-rate": "eval_win_rate",
}  # fmt: skip


def training_status(folder: Path, config: dict[str, Any], text: str) -> Status:
    """Raises `UserError`, naming the file, where one cannot be read."""
    metrics, driver = folder / "metrics.jsonl", driver_of(folder, config)
    events, remarks = _events(folder)
    if not metrics.is_file() or not metrics.stat().st_size:
        age = age_of([folder / "config.yaml", *_rollouts(folder)])
        state = state_of(False, age, driver)
        name = str(config.get("name", folder.name))
        known = {True: "starting workers", False: "stopped before its first step", None: "starting workers, or stopped"}
        rows = [("step", f"none yet: {known[driver]}"), *remarks]
        brief = f"no step yet: {known[driver]}"
        following = _next(state, folder, config, text)
        return Status("training run", name, str(folder), state, driver, age, {}, rows, following, brief, events)
    run = read_run(folder)
    rounds = Rounds.of(config) if run.rolls_out else None
    pace = _seconds_per_step(run, rounds)
    age = age_of([metrics, *_rollouts(folder)])
    state = state_of(run.summary is not None, age, driver, (pace or 0.0) * (1 if rounds is None else rounds.steps))
    total = run.total_steps
    left = None if pace is None or total is None else max(0, total - run.last_step) * pace
    evaluation = _evaluation(run)
    facts: dict[str, Any] = {
        "step": run.last_step, "total_steps": total, "epoch": _last(run, "epoch"), "loss": _last(run, "loss"),
        "margin": _margin(run), "pairs_per_second": _rate(run), "seconds_left": left,
        "evaluation": evaluation, "best_step": run.best_step, "keep_by": run.keep_by,
    }  # fmt: skip
    checkpoint, told = _checkpoint(run)
    models = _models(folder)
    step = f"{run.last_step} of {'an unknown number' if total is None else total}"
    found = {name: evaluation.get(name) for name in ("loss", "reward", "KL")}
    brief = f"step {step}" + "".join(f", eval {name} {value:.4g}" for name, value in found.items() if value is not None)
    rows = [("step", f"{step}{_epoch(facts)}")]
    if run.rolls_out:
        more, said = _of_rollouts(run, rounds, total, going_on=state == "running")
        facts, rows = facts | more, rows + said
    rows += [
        ("loss", _loss(run, facts)),
        ("held out", _held_out(run, evaluation)),
        ("speed", _speed(facts, state, "responses" if run.rolls_out else "pairs")),
        ("checkpoint", told),
        ("model", "; ".join(f"{name}/: step {kept.step}, {kept.why}" for name, kept in models.items()) or "none yet"),
        *remarks,
    ]
    return Status(
        "training run", run.name, str(folder), state, driver, age,
        {**facts, "checkpoint_step": checkpoint, "models": {name: kept.step for name, kept in models.items()}}, rows,
        _next(state, folder, config, text), brief, events,
    )  # fmt: skip


def _of_rollouts(
    run: Run, rounds: Rounds | None, total: int | None, *, going_on: bool
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Facts and rows that runs of pairs do not have."""
    last = {name: _last(run, name) for name in ("reward", "kl", "kl_coefficient")}
    drawn = RoundWatch(run.folder).drawn()
    facts: dict[str, Any] = {**last, "round": None, "rounds": None, "responses_drawn": None, "responses": None}
    rows = []
    if rounds is not None:
        at = min(run.last_step, (total or run.last_step + 1) - 1) // rounds.steps if drawn is None else drawn.round
        facts |= {
            "round": at + 1, "rounds": None if total is None else -(-total // rounds.steps),
            "responses_drawn": None if drawn is None else drawn.responses, "responses": rounds.responses,
        }  # fmt: skip
        rows.append(("rollouts", rounds.told(drawn, run.last_step, total, goes_on=going_on)))
    labels = {"reward": last["reward"], "KL": last["kl"], "coefficient": last["kl_coefficient"]}
    rows.append(("reward", figures(labels) or "none yet"))
    return facts, rows


def _rollouts(folder: Path) -> list[Path]:
    """What shows that a run with rollouts is at work between two steps."""
    file = newest_file(folder)
    return [] if file is None else [file]


def _next(state: str, folder: Path, config: dict[str, Any], text: str) -> str:
    if state == "finished":
        return f"open {folder / 'report.html'}; the model is in {folder / 'model'}"
    if state == "running":
        return f"orpo-ray report {folder}"
    return again("train", folder, config, text)


def _events(folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The last few things that happened; and a row for remarks, which are as many as the data are odd."""
    file = folder / "events.jsonl"
    happened = read_events(file, remarks=False)
    remarks = len(read_events(file)) - len(happened)
    return happened[-_EVENTS:], [("remarks", f"{remarks}, in {file}")] if remarks else []


def _models(folder: Path) -> dict[str, KeptModel]:
    """Those that are kept, by the folders that they are in."""
    run = RunFolder(folder)
    return {path.name: kept for path in (run.model, run.model_last) if (kept := kept_model(path)) is not None}


def _last(run: Run, key: str) -> float | None:
    """The last value of a metric; None where there is none or it was not finite."""
    _, values = run.series(key)
    return float(values[-1]) if values.size and np.isfinite(values[-1]) else None


def _margin(run: Run) -> float | None:
    found = _last(run, "reward_margin")
    return _last(run, "log_odds_ratio") if found is None else found


def _rate(run: Run) -> float | None:
    """Pairs a second over the last steps: their harmonic mean, since steps are of equal size."""
    _, rates = run.series("pairs_per_second")
    recent = rates[-_RECENT:]
    recent = recent[np.isfinite(recent) & (recent > 0)]
    return float(recent.size / (1 / recent).sum()) if recent.size else None


def _seconds_per_step(run: Run, rounds: Rounds | None) -> float | None:
    """Of `rounds` with a step's part of what comes before the updates: writing, scoring and all that is timed."""
    rate, pairs = _rate(run), run.section("train").get("global_batch_size", 64)
    if rate is None or not isinstance(pairs, int):
        return None
    if rounds is None:
        return pairs / rate
    begun = [line for line in run.lines if "round" in line][-_RECENT_ROUNDS:]
    keys = {key for line in begun for key in line if key.endswith("_seconds")}
    part = Run(run.folder, run.config, begun, None, [])
    before = sum(float(values[values > 0].sum()) for key in keys for values in [part.series(key)[1]])
    return pairs * rounds.samples / rate + before / max(1, len(begun)) / rounds.steps


def _evaluation(run: Run) -> dict[str, float | None]:
    """The last one: its step, and what it found."""
    steps = run.series(run.evaluated)[0]
    if not steps.size:
        return {}
    step, keys = int(steps[-1]), _OF_ROLLOUTS if run.rolls_out else _HELD_OUT
    return {"step": step, **{label: run.value_at(key, step) for label, key in keys.items()}}


def _checkpoint(run: Run) -> tuple[int | None, str]:
    """The step of the newest that a run can continue from, and a line about it."""
    own = run.section("storage")
    elsewhere = {key: place for key in ("checkpoints", "mirror") if isinstance(place := own.get(key), str)}
    location = StorageConfig(path=str(run.folder.parent), **elsewhere).checkpoints_of(run.folder.name)
    try:
        found = Checkpoints(location).finished()
    except (OSError, pa.ArrowException, UserError) as error:
        return None, f"{location} cannot be read: {' '.join(str(error).split())}"
    if not found:
        return None, "none finished yet"
    mebibytes = sum(total.size for total in found[0].files.values()) / 2**20
    return found[0].step, f"step {found[0].step} ({mebibytes:,.0f} MiB), in {location}"


def _epoch(facts: dict[str, Any]) -> str:
    return "" if facts["epoch"] is None else f", epoch {facts['epoch']:.2f}"


def _loss(run: Run, facts: dict[str, Any]) -> str:
    if facts["loss"] is None:
        return "not finite" if run.series("loss")[0].size else "none yet"
    return f"{facts['loss']:.4f}" + ("" if facts["margin"] is None else f", margin {facts['margin']:+.3f}")


def _held_out(run: Run, evaluation: dict[str, float | None]) -> str:
    if not evaluation:
        return "not evaluated yet"
    step, by = evaluation["step"], "" if run.keep_by == run.evaluated else f" by {run.keep_by}"
    kept = "" if run.best_step is None else f"; best{by} at step {run.best_step}"
    return f"step {step}: {figures({k: v for k, v in evaluation.items() if k != 'step'})}{kept}"


def _speed(facts: dict[str, Any], state: str, unit: str) -> str:
    if facts["pairs_per_second"] is None:
        return "no step yet"
    told = f"{facts['pairs_per_second']:.1f} {unit}/s{' in updates' if unit == 'responses' else ''}"
    left = facts["seconds_left"]
    if state == "finished" or left is None or not math.isfinite(left):
        return told
    return f"{told}, {duration(left)} {'left' if state == 'running' else 'of work left'}"
