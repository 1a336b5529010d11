"""What a worker tells the driver at the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Of a run that came to its end, or of one that a person stopped, by a wish or by a mistake."""

    step: int = 0
    best_step: int | None = None
    best_eval_loss: float | None = None
    workers: int = 0
    stopped: bool = False
    """Before its last step, as was wished for (see `stopping`)."""
    mistake: str = ""
    """Said in one line; Ray Train would retry an exception."""
