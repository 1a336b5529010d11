"""What a configuration is of: what a folder holds by the one in it, and what a file was meant for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from orpo_ray.config.reading import read_yaml
from orpo_ray.errors import UserError

Kind = Literal["training run", "evaluation", "scores", "sweep", "paper"]

_KINDS: dict[str, Kind] = {
    "space": "sweep", "models": "evaluation", "reward_models": "scores", "model": "training run",
    "methods": "paper",
}  # fmt: skip
"""By the key that only such a configuration, and none after it, has."""


_MEANT: dict[str, tuple[set[str], str]] = {
    "SweepConfig": ({"train", "space"}, "a sweep: orpo-ray sweep"),
    "PaperConfig": ({"methods", "sizes"}, "the paper remade: orpo-ray paper"),
    "PipelineConfig": ({"train", "evaluate"}, "a pipeline: orpo-ray pipeline"),
    "BenchmarkConfig": ({"run", "contestants"}, "a benchmark: orpo-ray bench"),
    "EvaluationConfig": ({"models", "prompts"}, "an evaluation: orpo-ray evaluate"),
    "ScoreConfig": ({"reward_models", "prompts"}, "scores: orpo-ray score"),
    "TrainConfig": ({"model", "data"}, "a training run: orpo-ray train"),
}
"""By schema the keys that tell it, where none before it is told, and what it is of, with the command that takes it."""


def meant_for_another(schema: str, mapping: dict[str, Any]) -> str:
    """What a mapping that is no valid `schema` was meant for; empty: for nothing else, as far as can be told."""
    meant = next((name for name, (keys, _) in _MEANT.items() if keys <= mapping.keys()), schema)
    return "" if meant == schema or schema not in _MEANT else _MEANT[meant][1]


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
