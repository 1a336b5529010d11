"""Numbers of a run for reading."""

from __future__ import annotations

from typing import Any

from orpo_ray.report.runs import Run


def number(value: Any, digits: int = 3) -> str:
    """A metric for reading: `digits` decimals, a true minus sign, a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return "–" if not isinstance(value, (int, float)) else f"{100 * value:.{digits}f}%"


def describe_change(run: Run, key: str) -> str:
    """`−0.61 → −0.46 (rises)`, from the first evaluation to the last; empty where there are not two."""
    _, values = run.series(key)
    finite = [float(value) for value in values if value == value]
    if len(finite) < 2:
        return ""
    first, last = finite[0], finite[-1]
    direction = "rises" if last > first else "falls" if last < first else "stays"
    return f"{number(first, 2)} → {number(last, 2)} ({direction})"


def time_taken(run: Run) -> str:
    """`in all 1 h 5 min`; empty for a run that has not finished."""
    summary = run.summary or {}
    if not is_number(summary, "seconds"):
        return ""
    minutes, rest = divmod(round(summary["seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return "in all " + (f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s")


def is_number(section: dict[str, Any], key: str) -> bool:
    """Whether a section of a configuration, or a summary, has a number there that can be written out."""
    value = section.get(key)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
