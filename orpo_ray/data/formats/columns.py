"""Where in a record things are: `data.columns`, and the columns that nobody reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from orpo_ray.data.formats.messages import MEDIA, checked_text
from orpo_ray.data.json_values import decode
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.visible import visible

SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold a system turn."""
PARTS = ("input", "instruction", "history", "context", "documents", "functions", *MEDIA)
"""Columns that are part of what is asked wherever they stand; `SYSTEM` and `tools` are too, and are read."""
_QUESTION = {*PARTS, *SYSTEM, "tools"}
_LISTS = (
    "prompt", "chosen", "rejected", "conversations", "conversation_a", "conversation_b", "conversation_history",
    "context",
)  # fmt: skip

# How messages begin that Python, or pandas in a CSV file, has printed, and what one of them must hold.
_FIRST_MESSAGE = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_ROLE = re.compile(r"""['"](?:role|from)['"]\s*:""")


def holds(value: Any) -> bool:
    """Whether a column says anything: Parquet and CSV have every column in every row."""
    return value is not None and value != "" and value != [] and value != {}


def mapped(value: dict[str, Any], columns: Mapping[str, str | list[str]], account: Account) -> dict[str, Any]:
    """The record under the names prompt, chosen, rejected, system and tools, and its other columns as they are.

    Raises `BadRecord` where there is no such column.
    """
    found: dict[str, Any] = {}
    roots: dict[str, list[str]] = {}
    for name, paths in columns.items():
        several = [paths] if isinstance(paths, str) else paths
        values = []
        for path in several:
            root, inner, there = _lookup(value, path)
            if there:
                roots.setdefault(root, []).append(path)
                values.append(inner)
            elif name in ("system", "tools"):
                account.noted[f"have no {visible(path)} (columns.{name})"] += 1
            else:
                raise BadRecord("missing field", f"{visible(path)} (columns.{name}){_has(value)}")
        if len(several) > 1:
            texts = [checked_text(text, path) for text, path in zip(values, several, strict=True) if text is not None]
            found[name] = "\n\n".join(text for text in texts if text.strip())
        elif values:
            found[name] = values[0]
    others = {}
    for column, inner in value.items():
        if column in roots:
            if not _all_read(inner, [[] if path == column else path.split(".")[1:] for path in roots[column]]):
                account.note_unread(f"{column} but for {', '.join(roots[column])}")
        elif column in found:
            if holds(inner):
                account.note_unread(column)
        else:
            others[column] = inner
    return others | found


def _lookup(value: dict[str, Any], path: str) -> tuple[str, Any, bool]:
    """The column that a path begins in, what is there, and whether anything is."""
    if path in value:
        return path, value[path], True
    root, *steps = path.split(".")
    found: Any = value.get(root)
    for step in steps if root in value else ():
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step[:18]) < len(found):
            found = found[int(step[:18])]
        else:
            return root, None, False
    return root, found, root in value


def _all_read(value: Any, paths: list[list[str]]) -> bool:
    """Whether what is read at `paths` is all that a value holds."""
    if [] in paths:
        return True
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, inner in items:
        further = [steps for first, *steps in paths if first == str(key)]
        if holds(inner) and not (further and _all_read(inner, further)):
            return False
    return True


def with_messages_as_lists(value: dict[str, Any]) -> dict[str, Any]:
    """The record with message lists that are written as JSON text, and messages that stand alone, as lists.

    Raises `BadRecord` for what is meant as such text and is none, such as a list as Python prints it.
    """
    found = {name: as_message_list(value[name], name) for name in _LISTS if isinstance(value.get(name), str | dict)}
    return value | {name: items for name, items in found.items() if items is not None}


def as_message_list(value: Any, name: str) -> list[Any] | None:
    """The messages that a text, as JSON, or an object stands for; None where it is neither.

    Raises `BadRecord`, about `name`, for what is meant as such text and is none.
    """
    if isinstance(value, dict):
        return [value] if _is_message(value) else None
    if not value.lstrip().startswith("[") or not value.rstrip().endswith("]"):
        return None
    items = decode(value)
    if isinstance(items, list) and items and all(map(_is_message, items)):
        return items
    if _FIRST_MESSAGE.match(value) and _ROLE.search(value):
        why = items if isinstance(items, BadRecord) else "something in it has no role"
        raise BadRecord("not messages", f"{name} is text that begins as a list of messages, and is none: {why}")
    return None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or {"from", "value"} <= value.keys())


def note_unread(
    value: dict[str, Any],
    reads: Iterable[str],
    allowed: Sequence[str],
    is_said: Callable[[str], bool],
    account: Account,
) -> None:
    """Count the columns of a record beside those in `reads` (dotted: a member of a struct).

    `is_said`: whether a text stands in what is asked. Raises `BadRecord` for a column in `PARTS`, or one called as
    those in upper case, whose text does not, unless it is in `allowed` (`data.unread`).
    """
    whole = set(reads)
    members: dict[str, set[str]] = {}
    for path in whole:
        root, _, inner = path.partition(".")
        if inner:
            members.setdefault(root, set()).add(inner)
    for name, inner in value.items():
        if name in whole or not holds(inner):
            continue
        if name in members:
            for key in inner.keys() - members[name] if isinstance(inner, dict) else ():  # else it is read as a whole
                if holds(inner[key]):
                    account.note_unread(f"{name}.{key}")
            continue
        if (
            name.lower() in _QUESTION
            and name not in allowed
            and not (isinstance(inner, str) and is_said(inner.strip()))
        ):
            raise BadRecord(
                name if name in MEDIA else "column not read",
                f"{name} may be part of what is asked; name it under columns, as in "
                f"{{prompt: [prompt, {name}]}}, or under unread to leave it out",
            )
        account.note_unread(name)


def _has(value: dict[str, Any]) -> str:
    """What columns a record has, for whoever looks for another; names are a stranger's."""
    return f" (it has {visible(', '.join(map(str, value))[:200])})" if value else ""


def missing(value: dict[str, Any], field: str) -> BadRecord:
    """The error of a record of no shape that is known, for want of a column."""
    where = f"{_has(value)}; the key columns says where ({field}: NAME)" if value else ""
    return BadRecord("missing field", f"{field}{where}")
