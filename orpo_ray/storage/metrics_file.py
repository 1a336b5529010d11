"""`metrics.jsonl`: its lines, as whoever reads them may rely on."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, member, read_lines

Line = dict[str, Any]

_LARGEST = sys.float_info.max  # JSON has integers beyond it, and Python's also NaN and infinity
_WIN_RATE = ("eval_win_rate", "eval_win_rate_low", "eval_win_rate_high")


def read_metrics(path: Path, numbers: Collection[str] = ()) -> dict[int, Line]:
    """The whole lines of a run's metrics, by line number; one that is still being written is none.

    Each has a step, a win-rate only with its interval, and, where it has any of `numbers`, a finite number there or
    null. Other values may be anything. Raises `UserError`, naming the line and the key, where that is not so.
    """
    lines = read_lines(path)
    for number, line in lines.items():
        try:
            _check(line, numbers)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return lines


def _check(line: Line, numbers: Collection[str]) -> None:
    step = line.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError("has no step number")
    if "skipped" in line:
        member(line, "skipped", list)
    for key in numbers:
        if line.get(key) is not None:
            _require_finite(line, key)
    if line.get("eval_win_rate") is not None or any(key in line for key in _WIN_RATE[1:]):
        for key in _WIN_RATE:
            _require_finite(line, key)


def _require_finite(line: Line, key: str) -> None:
    value = member(line, key, *NUMBER)
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{key} is not finite")
