"""Structured logs: a JSON object a line on stderr, where Ray keeps what a process says and log collectors look.

Any module of the package calls `log`. A process that belongs to a run says so by `log_as`; where none has, as in a
program that uses this package, it is the logger `orpo_ray` of Python's own logging.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from orpo_ray.masking import masked, masked_tree

_LOGGER = logging.getLogger("orpo_ray")
_LOGGER.addHandler(logging.NullHandler())  # else Python itself would write warnings to stderr
_place: dict[str, Any] = {}


def log_as(**place: Any) -> None:
    """From now on this process's lines go to stderr and say whose they are: `run="toy", trial="003", rank=1`."""
    _place.clear()
    _place.update(place)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def at_step(step: int) -> None:
    """From now on this process's lines name this optimizer step."""
    _place["step"] = step


def log(event: str, level: int = logging.INFO, **values: Any) -> None:
    """One line: what has happened, in words that are always the same, and its values."""
    _LOGGER.log(level, event, extra={"values": values})


def line_of(event: str, **values: Any) -> dict[str, Any]:
    """The object that a line is, with secrets masked."""
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": when, **_place, "event": masked(event), **masked_tree(values, by_name=True)}


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = {"level": record.levelname.lower(), **getattr(record, "values", {})}
        return json.dumps(line_of(record.getMessage(), **values), default=str)
