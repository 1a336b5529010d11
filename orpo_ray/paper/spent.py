"""How long a finished stage took, as its folder tells."""

from __future__ import annotations

from pathlib import Path

from orpo_ray.config import EvaluationConfig, SweepConfig
from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, read_member
from orpo_ray.stages.graph import Stage


def seconds_spent(stage: Stage) -> float | None:
    """Of a run as its summary has it, of its last try alone where it was interrupted; of a sweep as it counts itself;
    of an evaluation from the file that it begins with to that of its numbers, of its last try alone too. None: nothing
    tells."""
    try:
        if isinstance(stage.config, EvaluationConfig):
            return _between(stage.folder / "config.yaml", stage.folder / "winrates.json")
        file = stage.folder / ("sweep.json" if isinstance(stage.config, SweepConfig) else "summary.json")
        found: float = read_member(file, "seconds", *NUMBER)
    except (OSError, UserError):
        return None
    return found


def _between(first: Path, last: Path) -> float:
    return max(0.0, last.stat().st_mtime - first.stat().st_mtime)
