"""One way through a stage, and how long it took each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Way:
    run: Callable[[], int]
    """Does the whole work once; returns how much it made."""
    makes: str
    """Of what: `responses` or `tokens`."""
    computed: int | None = None
    """Tokens that go through the model, padding included, where that tells the ways apart."""
    seconds: list[float] = field(default_factory=list)
    """Of each turn."""
    made: list[int] = field(default_factory=list)

    def take_turn(self) -> None:
        start = time.perf_counter()
        self.made.append(self.run())
        self.seconds.append(time.perf_counter() - start)
