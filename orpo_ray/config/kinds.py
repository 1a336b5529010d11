"""What a folder holds, by the configuration in it: a name that is taken for one thing is not given to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from orpo_ray.config.loading import read_yaml
from orpo_ray.errors import UserError

Kind = Literal["training run", "evaluation", "scores", "sweep", "paper"]

_KINDS: dict[str, Kind] = {
    "space": "sweep", "models": "evaluation", "reward_models": "scores", "model": "training run",
    "methods": "paper",
}  # fmt: skip
"""By the key that only such a configuration, and none after it, has."""


def kind_of(mapping: dict[str, Any]) -> Kind | None:
    """What a configuration is of; None: of none of them."""
    return next((kind for key, kind in _KINDS.items() if key in mapping), None)


def held_for(kind: Kind, path: Path) -> dict[str, Any] | None:
    """The configuration that lies at `path`; None where there is none. Raises `UserError` where it is of something else
    than `kind`, or cannot be read."""
    if not path.is_file():
        return None
    held = read_yaml(path)
    found = kind_of(held)
    if found not in (kind, None):
        raise UserError(f"{path.parent}: holds the folder of another kind ({found}); choose another name=...")
    return held
