"""A benchmark: a file whose keys are the defaults of the evaluation, or of the scores, that names it.

Those that come along lie in `benchmarks/` beside this file, so that they are found wherever the package is installed.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from orpo_ray.config.paths import expanded, require_place
from orpo_ray.config.reading import read_yaml
from orpo_ray.errors import UserError

SHIPPED = Path(__file__).parent / "benchmarks"
_BY_LABEL = ("models", "reward_models", "judges")
_BY_NAME = (*_BY_LABEL, "prompts.columns", "prompts.roles", "sampling.by_category")
"""Mappings whose keys are names and no settings."""


def with_benchmark(mapping: dict[str, Any], origin: str) -> dict[str, Any]:
    """`mapping` over what the file says that its `benchmark` names; a key of a section at a time, its own keys win.

    Of a mapping of names (`sampling.by_category`) `{}` or null leaves nothing that the file says, and null for a name
    leaves that one out. Who has a label of the file's (`models`, `judges`) replaces all that it says of it.

    Raises `UserError`, naming `origin`, where there is no such file, and where `mapping` itself is a benchmark.
    """
    named = mapping.get("benchmark")
    if named is None and "name" not in mapping and "reward_models" not in mapping:
        raise UserError(
            f"{origin}: has no name, so it is a benchmark, for an evaluation to name: `benchmark: {origin}`"
        )
    if not isinstance(named, str):
        return mapping
    file = _file(named, origin)
    defaults = read_yaml(file)
    for key in ("name", "benchmark"):
        if key in defaults:
            raise UserError(f"{origin}: benchmark: {file} has the key {key}, which no benchmark has")
    return _over(defaults, mapping)


def _file(named: str, origin: str) -> Path:
    try:
        own, shipped = expanded(require_place(named)), SHIPPED / f"{named}.yaml"
    except ValueError as error:
        raise UserError(f"{origin}: benchmark: {error}") from None
    if os.path.isfile(own):  # `Path.is_file` raises where a name is too long
        return own
    if "/" not in named and os.path.isfile(shipped):
        return shipped
    names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    close = difflib.get_close_matches(named, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise UserError(f"{origin}: benchmark: {named!r:.80} is no file, and none that comes along; {hint}")


def _over(defaults: dict[str, Any], own: dict[str, Any], above: str = "") -> dict[str, Any]:
    """`above`: the dotted key that both are found under, with a dot behind it."""
    found = dict(defaults)
    for key, value in own.items():
        here, below = above + key, found.get(key)
        if isinstance(below, dict) and here in _BY_NAME and value is None:
            del found[key]
            continue
        if isinstance(below, dict) and isinstance(value, dict):
            value = _names(below, value, here) if here in _BY_NAME else _over(below, value, f"{here}.")
        found[key] = value
    return found


def _names(defaults: dict[str, Any], own: dict[str, Any], key: str) -> dict[str, Any]:
    left_out = [name for name, value in own.items() if value is None and name in defaults]
    found = {**defaults, **own} if key in _BY_LABEL else _over(defaults, own, f"{key}.")
    return {name: value for name, value in found.items() if name not in left_out} if own else {}
