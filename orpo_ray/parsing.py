"""JSON that others may have written, or damage may have changed: read, or told in one plain line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from orpo_ray.errors import UserError

_KINDS = {
    dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
NUMBER = (int, float)
"""The types of a member that is a number."""


def from_json(text: str | bytes) -> Any:
    """As `json.loads`; brackets nested without end are a `ValueError` too."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None


def object_from_json(text: str | bytes) -> dict[str, Any]:
    """Raises `ValueError` for anything else than a JSON object."""
    found = from_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {kind(found)}")
    return found


def member(found: dict[str, Any], key: str, *kinds: type) -> Any:
    """What an object has under `key`, of one of the types `kinds`. Raises `ValueError`, naming the key."""
    if key not in found:
        raise ValueError(f"has no {key}")
    value = found[key]
    if type(value) not in kinds:  # not `isinstance`, for which true is a whole number
        wanted = " or ".join(_KINDS[each] for each in kinds if each is not int or float not in kinds)
        raise ValueError(f"{key} should be {wanted}, and is {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), type(value).__name__)


def finite(value: Any) -> float:
    """A number as it is; null (how a diverged value is written) and anything else as NaN."""
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.nan


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError`, naming the file, where it holds none."""
    try:
        return object_from_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_member(path: Path, key: str, *kinds: type) -> Any:
    """One member of the JSON object in a file. Raises `UserError`, naming the file and the key."""
    found = read_object(path)
    try:
        return member(found, key, *kinds)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_text(path: Path) -> str:
    """A file's text. Raises `UserError`, naming the file, where it cannot be read or is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_lines(path: Path) -> dict[int, dict[str, Any]]:
    """The objects in a file of JSON lines, by line number; a last line without its end is still being written.

    Raises `UserError`, naming the file and the line, where one is no object.
    """
    found = {}
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        if line.strip():
            try:
                found[number] = object_from_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    return found
