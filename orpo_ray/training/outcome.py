"""What a worker tells the driver at the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Of a run that came to its end, or of one that a person stopped, by a wish or by a mistake."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    """Of `train.keep_by`, at that step."""
    workers: int = 0
    stopped: bool = False
    """Before its last step, as was wished for (see `stopping`)."""
    mistake: str = ""
    """Said in one line; Ray Train would retry an exception."""
    diverged: bool = False
    """Whether the mistake is one of settings with which the loss stopped being finite."""
