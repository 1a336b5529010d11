"""How far a run with rollouts is in its present round, from its folder alone.

Round i (from 0) trains on `rollouts/00000i.jsonl`: a line for each response as it is drawn, behind one that names the
weights which write.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orpo_ray.config.objectives import OBJECTIVES

ROLLOUTS = "rollouts"
_FILE = re.compile(r"\d{6,18}\.jsonl", re.ASCII)
_EPOCHS = {objective.model_fields["name"].default: objective.epochs_of_rollouts for objective in OBJECTIVES}
_PIECE = 2**20


class Drawn(NamedTuple):
    round: int
    """From 0."""
    responses: int


class Rounds(NamedTuple):
    """What each round of a run holds."""

    responses: int
    samples: int
    """Responses to a prompt."""
    steps: int
    """Optimizer steps, over all its epochs."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rounds | None:
        """By the mapping of a `config.yaml`; None: it has no rollouts, or none that could be."""
        rollouts, train, objective = (_section(config, name) for name in ("rollouts", "train", "objective"))
        prompts, samples = rollouts.get("prompts", 64), rollouts.get("samples", 1)
        epochs = rollouts.get("epochs")
        if epochs is None:
            epochs = _EPOCHS.get(str(objective.get("name")), 1)
        step = train.get("global_batch_size", 64)
        known = all(type(count) is int and count > 0 for count in (prompts, samples, epochs, step))
        if not rollouts or not known or prompts % step:
            return None
        return cls(prompts * samples, samples, epochs * (prompts // step))

    def told(self, drawn: Drawn | None, step: int, total: int | None, *, goes_on: bool = True) -> str:
        """`round 3 of 50: writing 120 of 256 responses`, when `step` steps of `total` are done."""
        number, within = divmod(step, self.steps) if drawn is None else (drawn.round, 0)
        if total is not None and step >= total:
            return f"{_counted(-(-total // self.steps), 'round')} done"
        of = "" if total is None else f" of {-(-total // self.steps)}"
        name = f"round {number + 1}{of}"
        if drawn is None:
            return f"{name}: {within} of {_counted(self.steps, 'update')} done"
        if drawn.responses < self.responses:
            said = f"{drawn.responses} of {_counted(self.responses, 'response')}"
            return f"{name}: writing {said}" if goes_on else f"{name}: {said} written"
        return f"{name}: {_counted(self.responses, 'response')} written{', scoring' if goes_on else ''}"


def whole_steps(config: Mapping[str, Any], epochs: int, steps_of_an_epoch: float) -> int:
    """Steps of a run of so many epochs; of rollouts those of whole rounds, the last of which may go beyond. `config`:
    the mapping of a `config.yaml`; `steps_of_an_epoch`: as lines tell it, so rounded."""
    rounds = Rounds.of(config)
    if rounds is None:
        return epochs * round(steps_of_an_epoch)
    return math.ceil(epochs * steps_of_an_epoch / rounds.steps - 1e-6) * rounds.steps


class RoundWatch:
    """Looks, now and again, how many responses of the present round are there; reads nothing twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: tuple[int, int] | None = None
        self._offset = self._lines = 0

    def drawn(self) -> Drawn | None:
        """Of the newest round, where something of it was written after the last line of metrics; else None: nothing is
        drawn, or scored, now."""
        file = newest_file(self._folder)
        try:
            if file is None or _written(file) <= _written(self._folder / "metrics.jsonl"):
                return None
            return Drawn(int(file.stem), max(0, self._count(file) - 1))
        except OSError:  # gone since
            return None

    def _count(self, file: Path) -> int:
        with file.open("rb") as lines:
            found = os.fstat(lines.fileno())
            if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:  # begun anew
                self._file, self._offset, self._lines = (found.st_dev, found.st_ino), 0, 0
            lines.seek(self._offset)
            while piece := lines.read(_PIECE):
                self._offset += len(piece)
                self._lines += piece.count(b"\n")
        return self._lines


def newest_file(folder: Path) -> Path | None:
    """That of the present round of a run, the last written; a run that went back to an earlier checkpoint has files of
    later rounds, too. None: there is none yet."""
    try:
        names = [name for name in os.listdir(folder / ROLLOUTS) if _FILE.fullmatch(name)]
    except OSError:
        return None
    return max((folder / ROLLOUTS / name for name in names), key=_order, default=None)


def _order(file: Path) -> tuple[int, int]:
    try:
        return _written(file), int(file.stem)
    except OSError:  # gone since
        return 0, int(file.stem)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _written(file: Path) -> int:
    """When, in nanoseconds; 0: never."""
    return file.stat().st_mtime_ns if file.is_file() else 0


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
