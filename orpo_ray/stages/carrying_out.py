"""One stage, carried out: as its own command does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.in_training import validate_checkpoint
from orpo_ray.report import write_evaluation_report, write_report, write_sweep_report
from orpo_ray.stages.graph import StageConfig
from orpo_ray.storage.mirror import mirrored
from orpo_ray.terminal import Console
from orpo_ray.training.launcher import train
from orpo_ray.training.stopping import StopRequest


def carry_out(
    config: StageConfig, curves: Mapping[str, Path], console: Console, stop: StopRequest | None = None
) -> Path:
    """Begin a stage, or go on with it, to its page, whose path is returned. `curves`: runs by label that an
    evaluation's page shows; `stop`: heard by training. What is finished is left as it is. Raises as the commands do."""
    with mirrored(config.storage, config.name, console):
        match config:
            case TrainConfig():
                return write_report(train(config, console, validate_checkpoint, wait=stop is not None, stop=stop).path)
            case EvaluationConfig():
                return write_evaluation_report(evaluate(config, console, wait=stop is not None).path, curves)
            case SweepConfig():
                from orpo_ray.tuning.sweep import sweep

                return write_sweep_report(sweep(config, console).path)
