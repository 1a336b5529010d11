"""Settings over settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def laid_over(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `own` laid over, mapping by mapping; lists and texts whole."""
    merged = dict(settings)
    for key, value in own.items():
        inner = merged.get(key)
        merged[key] = laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
