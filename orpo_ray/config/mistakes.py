"""What is wrong with a configuration, in one plain line: every mistake, in the order in which they were typed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.config.section import NAME, Section
from orpo_ray.visible import visible

MOST = 5
"""Mistakes that are told; of the others, how many there are."""

_WORDS = {
    "string_type": "should be a text",
    "dict_type": "should be a mapping of keys",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "too_short": "should not be empty",
    NAME: "should be letters, digits, dots, dashes and underscores, a letter or a digit first",
}
"""In the place of pydantic's, by its kind of problem, or by the pattern that a text does not match."""


def described(error: ValidationError, schema: type[Section], mapping: dict[str, Any]) -> str:
    """All that is wrong with `mapping`, in the order of its keys; what is missing comes last."""
    problems: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for problem in error.errors():
        problems.setdefault(_location(problem, mapping), []).append(problem)
    # What may be of several kinds has a problem as each; where it is of one of them, what is wrong in it is told alone.
    outermost = {location[:depth] for location in problems for depth in range(len(location))}
    problems = {location: found for location, found in problems.items() if location not in outermost}
    told = {location: _message(location, problems[location], schema) for location in problems}
    meant = {
        text.rpartition("; did you mean ")[2].rstrip("?") for location, text in told.items()
        if problems[location][0]["type"] == "extra_forbidden"
    }  # fmt: skip
    texts = [
        told[location] for location in sorted(told, key=lambda location: _order(location, mapping))
        if not (problems[location][0]["type"] == "missing" and ".".join(location) in meant)
    ]  # fmt: skip
    more = len(texts) - MOST
    return "; ".join(texts[:MOST]) + (f" (and {more} more problem{'s' if more > 1 else ''})" if more > 0 else "")


def _location(problem: ErrorDetails, mapping: dict[str, Any]) -> tuple[str, ...]:
    """The keys that lead to a problem. Between them pydantic has what it calls the kinds that a value may be of."""
    value: Any = mapping
    location: list[str] = []
    for depth, part in enumerate(problem["loc"], start=1):
        in_list = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            value = value[part]
        elif problem["type"] != "missing" or depth < len(problem["loc"]):
            continue
        location.append(str(part))
    return tuple(location)


def _order(location: Sequence[str], mapping: dict[str, Any]) -> tuple[int, ...]:
    value: Any = mapping
    places: list[int] = []
    for part in location:
        keys = list(map(str, value if isinstance(value, dict) else range(len(value))))
        if part not in keys:
            return *places, len(keys)
        places.append(keys.index(part))
        value = value[next(key for key in value if str(key) == part)] if isinstance(value, dict) else value[int(part)]
    return tuple(places)


def _message(location: tuple[str, ...], found: list[ErrorDetails], schema: type[Section]) -> str:
    """`found`: all problems of one value."""
    kind, value, context = found[0]["type"], found[0]["input"], found[0].get("ctx", {})
    key = printable(".".join(location))
    if kind == "extra_forbidden":
        # Behind the objective's key pydantic has its name.
        objective = found[0]["loc"][1] if location[:1] == ("objective",) < location else None
        if objective and key in _valid_keys(schema):
            return f"{key} is no key of the objective {objective}"
        return f"unknown key {shown(key)[1:-1]}; {_nearest_key(list(location), schema)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return f"{key}.{tag}: should be one of {context['expected_tags']} (got {shown(context['tag'])})"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "union_tag_not_found" and context["discriminator"] == "'kind'":
        return f"{key}.kind is missing" if isinstance(value, dict) else f"{key}: should be a mapping of keys"
    wanted = list(dict.fromkeys(map(_wanted, found)))
    several = "".join(f", or {each.removeprefix('should be ')}" for each in wanted[1:])
    return f"{key}: {wanted[0]}{several} (got {shown(value)})"


def _wanted(problem: ErrorDetails) -> str:
    kind = problem["type"]
    if kind == "union_tag_not_found":
        return "should be a text, or a list"
    if kind in {"model_type", "model_attributes_type"}:
        return "should be a mapping of keys"
    return _WORDS.get(problem.get("ctx", {}).get("pattern", kind)) or problem["msg"].removeprefix("Input ")


def _valid_keys(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Every dotted key there is, sections included, with its last part."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        last = field.alias or name
        keys[prefix + last] = last
        children = (field.annotation, *get_args(field.annotation))  # a section, or a section or null
        for child in OBJECTIVES if name == "objective" else children:
            if isinstance(child, type) and issubclass(child, Section):
                keys |= _valid_keys(child, f"{prefix}{last}.")
    return keys


def _nearest_key(location: list[str], schema: type[Section]) -> str:
    """Names the valid key most like an unknown one, in its section or anywhere, else all of its section."""
    *above, unknown = location
    everywhere = _valid_keys(schema)
    beside = {".".join([*above, last]): last for last in _keys_at(above, schema)}
    for keys, cutoff in ((beside, 0.6), (everywhere, 0.7)):
        close = difflib.get_close_matches(unknown, keys.values(), n=1, cutoff=cutoff)
        if close:
            return f"did you mean {next(key for key, last in keys.items() if last == close[0])}?"
    return f"{'.'.join(above) or 'the top level'} has {', '.join(beside.values())}"


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a value of this type may be, or hold in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def sections_at(location: list[str], schema: type[Section]) -> list[type[Section]]:
    """What the section at `location` may be, which may be in a list or a mapping of sections."""
    sections = [schema]
    for part in location:
        fields = [(name, field) for section in sections for name, field in section.model_fields.items()]
        found = [field for name, field in fields if (field.alias or name) == part]
        if found:  # else an index, or a name in a mapping
            sections = [inner for field in found for inner in _sections_in(field.annotation)]
    return sections


def _keys_at(location: list[str], schema: type[Section]) -> list[str]:
    """The keys of the section at `location`."""
    sections = sections_at(location, schema)
    return [field.alias or name for section in sections for name, field in section.model_fields.items()]


def printable(key: str) -> str:
    """A dotted key, cut to fit a line, with what a terminal would obey written out."""
    return visible(key[:200])


def shown(value: Any) -> str:
    """`value` as Python writes it, cut to fit a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        return "a number too long to show"
