"""Which kind of folder it is, and its status in a few lines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from orpo_ray.config import read_yaml
from orpo_ray.errors import UserError
from orpo_ray.status.evaluation import evaluation_status
from orpo_ray.status.scores import score_status
from orpo_ray.status.status import Status, duration
from orpo_ray.status.sweep import sweep_status
from orpo_ray.status.training import training_status
from orpo_ray.terminal import Console

_READERS = {
    "space": sweep_status, "models": evaluation_status, "reward_models": score_status, "model": training_status,
}  # fmt: skip
"""By the key that only such a configuration, and none after it, has."""
_STATES = {
    "finished": "finished", "running": "running, as it seems", "not begun": "not begun",
    "silent": "not finished, and silent: interrupted, or busy with something long",
}  # fmt: skip


def read_status(folder: Path) -> Status:
    """Where the run, the evaluation, the scores or the sweep in `folder` stands.

    Raises `UserError` where it is no such folder, or a file of it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: not the folder of a run, an evaluation or a sweep (no config.yaml)")
    config = read_yaml(file)
    for key, reader in _READERS.items():
        if key in config:
            return reader(folder, config, file.read_text(encoding="utf-8"))
    raise UserError(f"{file}: not the configuration of a run, an evaluation or a sweep")


def print_status(status: Status, console: Console) -> None:
    """A line for each thing that is known."""
    age = "" if status.age is None else f" (last sign {duration(status.age)} ago)"
    rows = [("state", f"{_STATES[status.state]}{age}"), *status.rows]
    rows += [("event", f"{when}  {what}") for when, what in status.events]
    rows.append(("next", status.next))
    console.say(f"{status.kind} {status.name} in {status.folder}")
    for label, text in rows:
        console.say(f"  {label:<10} {text}")


def as_json(status: Status) -> str:
    """One line: the numbers and no sentences, but for the events and the next command."""
    found = asdict(status)
    del found["rows"]
    return json.dumps({**found.pop("facts"), **found})
