"""orpo_ray: align language models with ORPO on Ray, and measure what it bought.

From Python: `train`, `evaluate`, `sweep`, `score` and `load_policy` (docs/python.md), imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_ray.api import evaluate, load_policy, score, sweep, train
    from orpo_ray.errors import UserError

__version__ = "0.1.0"

__all__ = ["UserError", "evaluate", "load_policy", "score", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("orpo_ray.errors" if name == "UserError" else "orpo_ray.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
