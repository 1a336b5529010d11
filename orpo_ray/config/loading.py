"""A configuration: YAML plus dotted `key=value` overrides, validated, and one plain line for what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from orpo_ray.config.kinds import meant_for_another
from orpo_ray.config.mistakes import described, printable, sections_at, shown
from orpo_ray.config.reading import parse_yaml, read_yaml
from orpo_ray.config.schema import TrainConfig
from orpo_ray.config.section import PathSection, Section
from orpo_ray.errors import UserError
from orpo_ray.masking import holds_mask

Root = TypeVar("Root", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training configuration from YAML and apply dotted overrides such as `optim.lr=1e-5`.

    Raises `UserError`, naming the file and the key, for anything that is not a valid configuration.
    """
    return load_as(TrainConfig, path, overrides)


def load_as(schema: type[Root], path: str | Path, overrides: list[str] | None = None) -> Root:
    """As `load_config`, of any kind of configuration."""
    return parse_as(schema, read_yaml(path), overrides or [], origin=str(path))


def parse_config(mapping: dict[str, Any], overrides: list[str], origin: str) -> TrainConfig:
    """Validate a mapping with overrides applied; `origin` is the name that errors carry."""
    return parse_as(TrainConfig, mapping, overrides, origin)


def parse_as(schema: type[Root], mapping: dict[str, Any], overrides: list[str], origin: str) -> Root:
    """As `parse_config`, of any kind of configuration."""
    for override in overrides:
        mapping = _with_override(mapping, override, schema)
    if other := meant_for_another(schema.__name__, mapping):
        raise UserError(f"{origin}: is the configuration of {other}")
    mapping = schema.completed(mapping, origin)
    for key, text in _texts(mapping):
        if holds_mask(text):
            raise UserError(f"{origin}: {printable(key)}: its secret was masked when this was written; give it again")
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise UserError(f"{origin}: {described(error, schema, mapping)}") from None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a mapping with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else f"{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _with_override(mapping: dict[str, Any], override: str, schema: type[Section]) -> dict[str, Any]:
    """`mapping` with one `dotted.key=value` applied; the value is YAML. A path that stands for a section becomes it."""
    origin = f"override {shown(override)}"
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"{origin}: expected dotted.key=value, such as optim.lr=1e-5")
    mapping = dict(mapping)
    section: dict[str, Any] | list[Any] = mapping
    for depth, part in enumerate(path[:-1], start=1):
        place = _place(section, part, ".".join(path[: depth - 1]), origin)
        child = section.get(part) if isinstance(section, dict) else section[place]
        if isinstance(child, str) and any(issubclass(one, PathSection) for one in sections_at(path[:depth], schema)):
            child = {"path": child}
        if child is not None and not isinstance(child, dict | list):
            raise UserError(f"{origin}: {'.'.join(path[:depth])} is a single value, it has no keys below it")
        child = section[place] = list(child) if isinstance(child, list) else dict(child or {})
        section = child
    section[_place(section, path[-1], ".".join(path[:-1]), origin)] = parse_yaml(text, origin)
    return mapping


def _place(section: dict[str, Any] | list[Any], part: str, above: str, origin: str) -> Any:
    """What part of a dotted key is called in what lies above it: a name, or in a list a number from 0."""
    if isinstance(section, dict):
        return part
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(section)):
        raise UserError(f"{origin}: {above} is a list of {len(section)}, whose parts are called {above}.0 and so on")
    return int(part)
