"""The configuration of a pipeline: training runs, and the evaluation of what they made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from orpo_ray.config.evaluation import EvaluationConfig, Label
from orpo_ray.config.loading import parse_as
from orpo_ray.config.paths import expanded
from orpo_ray.config.reading import read_yaml
from orpo_ray.config.schema import StorageConfig, TrainConfig
from orpo_ray.config.section import FreeForm, Section
from orpo_ray.errors import UserError

EVALUATION = "evaluate"
"""What that stage is called beside the runs."""


class PipelineConfig(Section):
    train: Annotated[dict[Label, FreeForm], Field(min_length=1)]
    """Label to a training run: its configuration's file, or the mapping itself."""
    evaluate: FreeForm
    """The evaluation, likewise; the models or reward models of the runs are among its own."""
    storage: StorageConfig | None = None
    """Of all stages, each of which then finds the others' folders there; null: each stage's own."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of a pipeline."""

    runs: dict[str, TrainConfig]
    """By label."""
    evaluation: EvaluationConfig

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs for any of the stages at the least."""
        return max(self.evaluation.cpus, *(run.cpus for run in self.runs.values()))


def load_pipeline(path: str | Path, overrides: list[str] | None = None) -> Pipeline:
    """Read a pipeline's configuration, with overrides such as `train.orpo.optim.lr=1e-5`, and those of its stages.

    Raises `UserError`, naming the file, the stage and the key, for anything that is not valid in any of them.
    """
    mapping = read_yaml(path)
    if isinstance(mapping.get("train"), dict):
        mapping["train"] = {label: _mapping(stage) for label, stage in mapping["train"].items()}
    if "evaluate" in mapping:
        mapping["evaluate"] = _mapping(mapping["evaluate"])
    config = parse_as(PipelineConfig, mapping, overrides or [], origin=str(path))
    if EVALUATION in config.train:
        raise UserError(f"{path}: train.{EVALUATION}: the evaluation is called so; choose another label")
    runs = {label: parse_as(TrainConfig, stage, [], f"{path}: train.{label}") for label, stage in config.train.items()}
    evaluation = parse_as(EvaluationConfig, config.evaluate, [], f"{path}: evaluate")
    made = {run.run_dir for run in runs.values()}
    asked = [*(model.path for model in evaluation.asked.values()), *evaluation.reward_models.values()]
    if not made & {expanded(model).resolve() for model in asked}:
        raise UserError(f"{path}: evaluate: none of its models is a run of train ({', '.join(map(str, made))})")
    if config.storage is None:
        return Pipeline(runs, evaluation)
    own = {"storage": config.storage.model_dump()}
    moved = {str(run.run_dir): str(config.storage.run_dir(run.name)) for run in runs.values()}
    return Pipeline(
        {
            label: TrainConfig.model_validate({**_moved(run.model_dump(by_alias=True), moved), **own})
            for label, run in runs.items()
        },
        EvaluationConfig.model_validate({**_moved(evaluation.model_dump(), moved), **own}),
    )


def _mapping(stage: Any) -> Any:
    return read_yaml(stage) if isinstance(stage, str) else stage


def _moved(value: Any, moved: dict[str, str]) -> Any:
    """`value` with every path of a folder that has moved, or of what is in it, replaced."""
    if isinstance(value, dict):
        return {key: _moved(inner, moved) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(inner, moved) for inner in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    path = Path(os.path.realpath(expanded(value)))  # as `run_dir` is
    for folder in (path, *path.parents):
        if str(folder) in moved:
            return str(Path(moved[str(folder)]) / path.relative_to(folder))
    return value
