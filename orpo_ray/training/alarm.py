"""When a checkpoint is due beside those that the step number asks for: by the clock, and before a machine goes away."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS_BETWEEN_QUESTIONS = 5.0


class Alarm:
    """Rank 0's clock decides, and the others hear of it with the step's sums; so all ranks do the same."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._clock = clock
        self._saved = self._asked = clock()
        self._noticed = False
        self.urgent = False
        """Whether the checkpoint that is wanted has to be whole before training goes on."""

    def reset(self) -> None:
        """A checkpoint was begun."""
        self._saved, self.urgent = self._clock(), False

    def signals(self, *, leads: bool) -> dict[str, float]:
        """`leads`: on rank 0."""
        now = self._clock()
        due = self._seconds is not None and now - self._saved >= self._seconds
        return {"due": float(leads and due), "ask": float(leads and now - self._asked >= _SECONDS_BETWEEN_QUESTIONS)}

    def rings(self, signals: dict[str, float], preempted: Callable[[], bool]) -> bool:
        """Whether to save now. `preempted` is a question to all ranks together; a notice is answered once."""
        if signals["ask"]:
            self._asked = self._clock()
            noticed = preempted()
            self.urgent, self._noticed = noticed and not self._noticed, noticed
        return self.urgent or signals["due"] > 0
