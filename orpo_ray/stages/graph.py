"""A graph of stages. What a stage needs is not declared: it is whose folders its configuration names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig
from orpo_ray.config.paths import expanded
from orpo_ray.errors import UserError

StageConfig = TrainConfig | SweepConfig | EvaluationConfig


@dataclass(frozen=True)
class Stage:
    label: str
    config: StageConfig
    needs: tuple[str, ...]
    """Labels of the stages whose folders it reads, in their order."""

    @property
    def folder(self) -> Path:
        return folder_of(self.config)


class Graph:
    """Stages by label, each behind all that it needs, otherwise in the order in which they were given."""

    def __init__(self, configs: Mapping[str, StageConfig]) -> None:
        """Raises `UserError` where two stages have one folder, or stages wait for each other."""
        made: dict[Path, str] = {}
        for label, config in configs.items():
            if (other := made.setdefault(folder_of(config), label)) != label:
                raise UserError(f"{label}: has the folder of {other}, {folder_of(config)}; choose another name")
        stages = {label: Stage(label, config, _needs(label, config, made)) for label, config in configs.items()}
        self.stages: dict[str, Stage] = {}
        left = dict(stages)
        while left:
            ready = next((one for one in left.values() if all(need in self.stages for need in one.needs)), None)
            if ready is None:
                raise UserError(f"{', '.join(left)}: each waits for what another of them makes")
            self.stages[ready.label] = left.pop(ready.label)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    def __len__(self) -> int:
        return len(self.stages)

    def needed_by(self, label: str) -> set[str]:
        """Labels of all that a stage needs, by way of others too."""
        direct = self.stages[label].needs
        return {*direct, *(far for need in direct for far in self.needed_by(need))}

    def behind(self, label: str) -> set[str]:
        """Labels of all that need a stage, by way of others too."""
        return {stage.label for stage in self if label in self.needed_by(stage.label)}


def folder_of(config: StageConfig) -> Path:
    return config.storage.run_dir(config.name)


def _needs(label: str, config: StageConfig, made: Mapping[Path, str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    own = (
        config.training(config.first_point, config.name, config.storage) if isinstance(config, SweepConfig) else config
    )
    for text in _texts(own.model_dump(by_alias=True)):
        if os.sep not in text or "\0" in text:  # a name, of no folder, or no path at all
            continue
        path = Path(os.path.realpath(expanded(text)))  # as `run_dir` is: a link in it leads to one folder
        for folder in (path, *path.parents):
            if made.get(folder, label) != label:
                found[made[folder]] = None
    return tuple(sorted(found, key=list(made.values()).index))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
