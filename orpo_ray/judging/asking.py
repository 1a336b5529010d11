"""One call of a judge: what it is asked, and how its answer is to be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orpo_ray.data.formats import Message

Reads = Literal["labels", "preference", "rating"]
"""`labels`: the probabilities of two labels as the first token; `preference`: which answer a text prefers; `rating`:
the number that a text gives one answer."""

VERSION = 1
"""Raised by one whenever the same answer would be read as another verdict: older ones are then not found."""


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
    def messages(self) -> list[Message]:
        """As chat models take them."""
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, Message(role="user", content=self.user)]

    def key(self, judge: Mapping[str, Any]) -> str:
        """A hash of all that decides the answer. `judge`: JSON values that say which model it is and how it is drawn
        from."""
        content = [VERSION, judge, self.system, self.user, self.reads, self.labels, self.repeat]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
