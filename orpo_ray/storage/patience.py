"""Asking storage again where it fails: it may be busy, the network gone for a moment, an answer cut short."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from orpo_ray.masking import masked

STORAGE_ERRORS = (OSError, pa.ArrowException)
_LONGEST = 300  # characters of what is told of one
TRIES = 3
_Answer = TypeVar("_Answer")


def patiently(ask: Callable[[], _Answer], tries: int = TRIES) -> _Answer:
    """What `ask` returns, asked again after a while where storage fails. Raises its last error."""
    for left in reversed(range(tries)):
        try:
            return ask()
        except STORAGE_ERRORS:
            if not left:
                raise
        time.sleep(2 ** (tries - left))
    raise AssertionError("no try at all")


def said(error: Exception) -> str:
    """What a storage error says, in a line and without secrets."""
    return masked(" ".join(str(error).split())[:_LONGEST])
