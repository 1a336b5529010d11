"""`orpo-ray pipeline`: from base models to who wins, as one command that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from orpo_ray.cluster.connection import connect
from orpo_ray.config import Pipeline
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.in_training import validate_checkpoint
from orpo_ray.report import write_evaluation_report, write_report
from orpo_ray.storage.mirror import mirrored
from orpo_ray.terminal import Console
from orpo_ray.training.launcher import train


def run_pipeline(pipeline: Pipeline, console: Console | None = None) -> Path:
    """Train every run that is not finished, then evaluate; returns the evaluation's report. Each stage has a folder.

    Raises `UserError` where a stage does.
    """
    console = console or Console(stderr=True)
    connect(pipeline.cpus)
    for run in pipeline.runs.values():
        with mirrored(run.storage, run.name, console):
            write_report(train(run, console, validate_checkpoint).path)
    policies = {label: run.run_dir for label, run in pipeline.runs.items() if run.objective.name != "reward"}
    with mirrored(pipeline.evaluation.storage, pipeline.evaluation.name, console):
        return write_evaluation_report(evaluate(pipeline.evaluation, console).path, policies)
