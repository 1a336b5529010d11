"""What a status says, whatever kind of folder it is of, and how numbers are written in it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orpo_ray.config import StorageConfig
from orpo_ray.config.kinds import Kind
from orpo_ray.masking import MASK
from orpo_ray.storage.driver_lock import has_driver

_LIVELY = 60.0  # seconds; nothing that is running is silent for longer without a step or a trial that takes as long
_STEPS_OF_SILENCE = 10  # an evaluation or a checkpoint between two steps

State = Literal["finished", "running", "interrupted", "silent", "not begun"]


@dataclass(frozen=True)
class Status:
    """Where something stands. Fields that are None are not known from the folder."""

    kind: Kind
    name: str
    folder: str
    state: State
    """`running` and `interrupted` where the driver's lock says so. Where that cannot be asked (`driver` is None), what
    has shown signs of work is `running`, and `silent` is what has shown none for longer than its pace explains."""
    driver: bool | None
    """Whether a driver is at work on it; None: that cannot be told from here."""
    age: float | None
    """Seconds since the folder's last sign of work."""
    facts: dict[str, Any]
    """Numbers, by name; what `--json` prints."""
    rows: list[tuple[str, str]]
    """The same for a person: a label and a text."""
    next: str
    """What to type now."""
    brief: str
    """How far it is, or what it has found, in a few words."""
    events: list[tuple[str, str]] = field(default_factory=list)
    """When, and what; the last few, oldest first."""


def driver_of(folder: Path, config: dict[str, Any]) -> bool | None:
    """Whether a driver is at work on `folder`; None: that cannot be told from here.

    A copy of a folder has no lock, whoever is at work on the folder.
    """
    storage = config.get("storage")
    copied = isinstance(storage, dict) and storage.get("mirror") is not None
    return None if copied and not _is_at_its_place(folder, config) else has_driver(folder)


def state_of(finished: bool, age: float | None, driver: bool | None, pace: float = 0.0) -> State:
    """`pace`: seconds between two signs of work, as far as known."""
    if driver:
        return "running"
    if finished:
        return "finished"
    if age is None:
        return "not begun"
    if driver is False:
        return "interrupted"
    return "running" if age <= max(_LIVELY, _STEPS_OF_SILENCE * pace) else "silent"


def age_of(files: Iterable[Path]) -> float | None:
    """Seconds since the newest of these files was written; None where there is none."""
    times = []
    for file in files:
        try:
            times.append(os.path.getmtime(file))
        except OSError:
            continue
    return max(0.0, time.time() - max(times)) if times else None


def again(command: str, folder: Path, config: dict[str, Any], text: str) -> str:
    """The command line that continues what is in `folder`, whose config.yaml reads `text`."""
    if MASK in text:
        return f"the orpo-ray {command} that it was started with (config.yaml lacks its secrets)"
    arguments = ["orpo-ray", command, str(folder / "config.yaml")]
    if not _is_at_its_place(folder, config):
        arguments += [f"name={folder.resolve().name}", f"storage.path={folder.resolve().parent}"]
    return shlex.join(arguments)


def _is_at_its_place(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the command with that configuration, typed here, is about this very folder."""
    storage = config.get("storage")
    path = storage.get("path") if isinstance(storage, dict) else None
    place = StorageConfig(path=path if isinstance(path, str) else "runs").run_dir(str(config.get("name")))
    return place == folder.resolve()


def duration(seconds: float) -> str:
    """Two units at most: `3 h 20 min`."""
    whole = round(seconds)
    for size, unit, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def figures(values: dict[str, float | None]) -> str:
    """`loss 1.234  accuracy 0.75` of those that are there."""
    return "  ".join(f"{label} {value:.4g}" for label, value in values.items() if value is not None)
