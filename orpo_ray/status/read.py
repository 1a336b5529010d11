"""Which kind of folder it is, and its status in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from orpo_ray.config import read_yaml
from orpo_ray.config.kinds import kind_of
from orpo_ray.config.paths import STAGES
from orpo_ray.errors import UserError
from orpo_ray.status.evaluation import evaluation_status
from orpo_ray.status.scores import score_status
from orpo_ray.status.status import Status, duration
from orpo_ray.status.sweep import sweep_status
from orpo_ray.status.training import training_status
from orpo_ray.terminal import Console

_READERS = {
    "sweep": sweep_status, "evaluation": evaluation_status, "scores": score_status, "training run": training_status,
}  # fmt: skip
_SEEMS = {
    "running": "running, as it seems",
    "silent": "not finished, and silent: interrupted, or busy with something long",
}  # fmt: skip
"""What is said where the driver's lock cannot be asked."""
_AT_A_TIME = 16  # checkpoints may lie on storage that takes seconds to answer


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
    kind = kind_of(config)
    if kind is None:
        raise UserError(f"{file}: not the configuration of a run, an evaluation or a sweep")
    if kind == "paper":
        raise UserError(f"{folder}: no stage of this paper has begun")
    return _READERS[kind](folder, config, file.read_text(encoding="utf-8"))


def folders_in(folder: Path) -> list[Path]:
    """The folders of runs, evaluations and sweeps that lie in `folder`, by name, or that are stages of the paper there;
    none where it is itself one."""
    config = folder / "config.yaml"
    if config.is_file():
        return folders_in(folder / STAGES) if kind_of(read_yaml(config)) == "paper" else []
    return sorted(file.parent for file in folder.glob("[!.]*/config.yaml") if file.is_file())


def read_list(folders: Iterable[Path]) -> list[Status | UserError]:
    """Where each stands; or why that cannot be said."""

    def read(folder: Path) -> Status | UserError:
        try:
            return read_status(folder)
        except UserError as error:
            return error

    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(read, folders))


def print_list(found: list[Status | UserError], console: Console) -> None:
    """A line for each."""
    known = [status for status in found if isinstance(status, Status)]
    columns = [(Path(status.folder).name, status.kind, _said(status)) for status in known]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    for row, status in zip(columns, known, strict=True):
        name, kind, state = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        console.say(f"{name}  {kind}  {state}  {status.brief}{_ago(status)}")
    for error in found:
        if isinstance(error, UserError):
            console.say(str(error))


def print_status(status: Status, console: Console) -> None:
    """A line for each thing that is known."""
    rows = [("state", f"{_said(status)}{_ago(status)}"), *status.rows]
    rows += [("event", f"{when}  {what}") for when, what in status.events]
    rows.append(("next", status.next))
    console.say(f"{status.kind} {status.name} in {status.folder}")
    for label, text in rows:
        console.say(f"  {label:<10} {text}")


def _said(status: Status) -> str:
    return _SEEMS.get(status.state, status.state) if status.driver is None else status.state


def _ago(status: Status) -> str:
    return "" if status.age is None else f" (last sign {duration(status.age)} ago)"


def as_json(status: Status | UserError) -> str:
    """One line: the numbers and no sentences, but for the events and the next command."""
    if isinstance(status, UserError):
        return json.dumps({"error": str(status)})
    found = asdict(status)
    del found["rows"], found["brief"]
    return json.dumps({**found.pop("facts"), **found})
