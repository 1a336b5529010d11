"""When a checkpoint is due beside those that the step number asks for: by the clock, before a machine goes away, and
where a person stops the run."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS_BETWEEN_QUESTIONS = 5.0
_SECONDS_BETWEEN_SAVES = 10.0  # at least, while a notice stands


class Alarm:
    """Rank 0's clock decides, and the others hear of it with the step's sums; so all ranks do the same."""

    def __init__(
        self,
        minutes: float | None,
        clock: Callable[[], float] = time.monotonic,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`asked_to_stop`: on rank 0, whether a person wants the run to stop."""
        self._asked_to_stop = asked_to_stop
        self._seconds = None if minutes is None else 60 * minutes
        self._clock = clock
        self._saved = self._asked = clock()
        self._end: float | None = None
        """When a machine goes away, where there is a notice."""
        self.urgent = False
        """Whether the checkpoint that is wanted has to be whole before training goes on."""
        self.stops = False
        """Whether it is the last."""

    def reset(self) -> None:
        """A checkpoint was begun."""
        self._saved, self.urgent = self._clock(), False

    def signals(self, *, leads: bool) -> dict[str, float]:
        """`leads`: on rank 0."""
        now = self._clock()
        ask = now - self._asked >= _SECONDS_BETWEEN_QUESTIONS
        return {
            "due": float(leads and now - self._saved >= self._patience()),
            "ask": float(leads and ask),
            "stop": float(leads and self._asked_to_stop()),
        }

    def _patience(self) -> float:
        """Seconds from one checkpoint to the next. A notice halves what is left each time, so little is lost in the end
        however long it stands."""
        patience = float("inf") if self._seconds is None else self._seconds
        if self._end is None:
            return patience
        return min(patience, max(_SECONDS_BETWEEN_SAVES, (self._end - self._saved) / 2))

    def rings(self, signals: dict[str, float], seconds_left: Callable[[], float | None]) -> bool:
        """Whether to save now. `seconds_left` is a question to all ranks together: until a machine goes away, None
        where none does."""
        if signals["ask"]:
            self._asked = self._clock()
            left, noticed_before = seconds_left(), self._end is not None
            self._end = None if left is None else self._asked + left
            self.urgent = left is not None and not noticed_before
        if signals["stop"]:
            self.urgent = self.stops = True
        return self.urgent or signals["due"] > 0
