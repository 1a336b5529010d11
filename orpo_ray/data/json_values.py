"""JSON text to its value, or to what is wrong with it: of a line, an element of an array, a cell of a table."""

from __future__ import annotations

import json
from typing import Any

from orpo_ray.data.records import BadRecord, one_line


def decode(text: str) -> Any:
    """The value that `text` stands for, or a `BadRecord`: no JSON, or an object at any depth that has a key twice."""
    try:
        return _JSON.decode(text)
    except BadRecord as error:
        return error
    except json.JSONDecodeError as error:
        return BadRecord("malformed JSON", f"{error.msg.removesuffix(' at')} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        return BadRecord("malformed JSON", one_line(error))


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `BadRecord` where it has a key twice: it says two things, and neither is taken."""
    value = dict(fields)
    if len(value) == len(fields):
        return value
    names = [name for name, _ in fields]
    raise BadRecord("malformed JSON", f"the key {max(names, key=names.count)!r:.80} occurs twice")


_JSON = json.JSONDecoder(object_pairs_hook=_object)
