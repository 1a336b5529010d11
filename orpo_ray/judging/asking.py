"""One call of a judge: what it is asked, and how its answer is to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["labels", "preference", "rating"]
"""`labels`: the probabilities of two labels as the first token; `preference`: which answer a text prefers; `rating`:
the number that a text gives one answer."""


@dataclass(frozen=True)
class Asked:
    """One call, whoever is asked."""

    system: str
    """Empty: none."""
    user: str
    reads: Reads
    labels: tuple[str, str] | None = None
    """Of the answer shown first, and of the other; with `reads` `labels` alone."""
    repeat: int = 0
    """How often the same was asked before on purpose."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As chat models take them."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]
