"""`orpo-ray pipeline`: from base models to who wins, as one command that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from orpo_ray.config import Pipeline
from orpo_ray.config.pipeline import EVALUATION
from orpo_ray.stages.graph import Graph
from orpo_ray.stages.run import run_stages
from orpo_ray.terminal import Console


def run_pipeline(pipeline: Pipeline, console: Console | None = None) -> Path:
    """Train every run that is not finished, then evaluate; returns the evaluation's report. Each stage has a folder.

    Raises `UserError` where a stage has failed, when all that do not need it have been carried out.
    """
    graph = Graph({**pipeline.runs, EVALUATION: pipeline.evaluation})
    return run_stages(graph, console or Console(stderr=True))[EVALUATION]
