"""The configuration of a benchmark: which trainers take turns at the same steps of the same run, or which stage of an
evaluation is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orpo_ray.config.evaluation import Label
from orpo_ray.config.evaluation_benchmark import (
    EvaluationBenchmarkConfig,
    GenerationBenchmarkConfig,
    JudgingBenchmarkConfig,
    PipelineBenchmarkConfig,
    ScoringBenchmarkConfig,
)
from orpo_ray.config.loading import parse_as
from orpo_ray.config.objectives import OrpoConfig
from orpo_ray.config.reading import read_yaml
from orpo_ray.config.schema import StorageConfig, TrainConfig
from orpo_ray.config.section import Count, FreeForm, Integer, Section
from orpo_ray.errors import UserError

TrainerName = Literal["orpo_ray", "ray", "trl", "padded", "liger"]
_OWN = ("orpo_ray", "ray")


class ContestantConfig(Section):
    trainer: TrainerName
    """`orpo_ray`: this package's loop in a plain process; `ray`: the same run through Ray Train and DeepSpeed; `trl`:
    TRL's ORPOTrainer; `padded`: two padded forwards, as in the authors' code; `liger`: one padded forward and Liger's
    fused ORPO head."""
    overrides: FreeForm = Field(default_factory=dict)
    """What differs from `run`: dotted keys and their values, such as `model.lora: {rank: 16}`."""
    stretch: Annotated[Integer, Field(ge=2, le=1000)] | None = None
    """The first pair of each step gets a prompt, chosen and rejected so many times longer (trainer `orpo_ray`)."""


class BenchmarkConfig(Section):
    """A benchmark of trainers. Its result is `<name>.json`."""

    measures: Literal["training"] = "training"
    name: Label
    """What it is called: its result is `<name>.json`."""
    needs: Literal["cuda"] | None = None
    """Where such a device is missing, nothing is measured."""
    run: FreeForm
    """What every contestant trains: the sections of a training configuration, without `name` and `storage`."""
    contestants: Annotated[dict[Label, ContestantConfig], Field(min_length=1)]
    """Name: its trainer, and what differs. The first is compared with each other one."""
    turns: Literal["steps", "runs"] = "steps"
    """How contestants take turns: one optimizer step each, all of them loaded at once; or a whole run of
    `warm_up + steps` steps each, alone (a run through Ray cannot stop between steps, and a GPU has room for one)."""
    repeats: Count = 1
    """Whole runs of each contestant, where they take turns by runs."""
    steps: Count = 5
    """Measured optimizer steps of each contestant (in each repeat)."""
    warm_up: Count = 2
    """Optimizer steps before those."""
    threads: Count | None = None
    """That each contestant computes with on a CPU; null: one a core."""
    storage: StorageConfig = StorageConfig(path="runs/bench")
    """Where tokens are cached, and where runs through Ray leave their folders."""

    @model_validator(mode="after")
    def _contestants_can_run(self) -> BenchmarkConfig:
        try:
            self._parsed({}, "run")
            runs = {name: self.training(name) for name in self.contestants}
        except UserError as error:
            raise ValueError(str(error)) from None
        for name, contestant in self.contestants.items():
            trainer, objective = contestant.trainer, runs[name].objective
            if trainer not in _OWN and not (
                isinstance(objective, OrpoConfig) and objective.nll_tokens == "prompt_and_chosen"
            ):
                raise ValueError(
                    f"contestants.{name}: {trainer} computes the objective orpo with nll_tokens prompt_and_chosen alone"
                )
            if trainer == "ray" and self.turns == "steps":
                raise ValueError(f"contestants.{name}: a run through Ray cannot stop between steps; set turns: runs")
            if trainer != "orpo_ray" and contestant.stretch:
                raise ValueError(f"contestants.{name}: stretch is for the trainer orpo_ray")
        if self.turns == "steps" and self.repeats != 1:
            raise ValueError("repeats is for turns: runs; set steps instead")
        return self

    def training(self, contestant: str) -> TrainConfig:
        """What a contestant trains. Raises `UserError`, naming the key, for an override that does not fit."""
        return self._parsed(self.contestants[contestant].overrides, f"contestants.{contestant}")

    def _parsed(self, overrides: dict[str, Any], origin: str) -> TrainConfig:
        if taken := {"name", "storage"} & self.run.keys():
            raise UserError(f"run.{min(taken)}: is the benchmark's own; set {min(taken)} at the top")
        mapping = {**self.run, "name": self.name, "storage": self.storage.model_dump()}
        texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        return parse_as(TrainConfig, mapping, texts, origin)


SCHEMAS: dict[Any, type[BenchmarkConfig] | type[EvaluationBenchmarkConfig]] = {
    "generation": GenerationBenchmarkConfig, "scoring": ScoringBenchmarkConfig, "pipeline": PipelineBenchmarkConfig,
    "judging": JudgingBenchmarkConfig, "training": BenchmarkConfig,
}  # fmt: skip


def load_benchmark(path: str | Path, overrides: list[str] | None = None) -> BenchmarkConfig | EvaluationBenchmarkConfig:
    """A benchmark of any kind from a file; its key `measures` says of which (default: training).

    Raises `UserError`, naming the file and the key, for anything that is not a valid configuration.
    """
    mapping = read_yaml(path)
    measures = mapping.get("measures", "training")
    if not isinstance(measures, str) or measures not in SCHEMAS:
        raise UserError(f"{path}: measures: should be one of {', '.join(SCHEMAS)} (got {measures!r:.40})")
    return parse_as(SCHEMAS[measures], mapping, overrides or [], str(path))
