"""A benchmark of one stage, from its configuration to its result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from orpo_ray.bench.results import STAGES, described, spread
from orpo_ray.bench.stages.way import Way
from orpo_ray.config import EvaluationBenchmarkConfig
from orpo_ray.config.evaluation_benchmark import (
    GenerationBenchmarkConfig,
    JudgingBenchmarkConfig,
    ScoringBenchmarkConfig,
)
from orpo_ray.terminal import Console

_WARM_UP = {"generation": 1, "judging": 1, "scoring": 1, "pipeline": 0}
"""Turns that do not count. The pipeline's actors are started anew each time, as for a user."""


def run(config: EvaluationBenchmarkConfig, console: Console) -> dict[str, Any]:
    """Give every way its turns; returns the result file's content.

    Raises `UserError` for what the user has to mend: the data, or a model.
    """
    with tempfile.TemporaryDirectory(prefix="orpo-ray-bench-") as folder, _ways(config, Path(folder)) as ways:
        for number in range(1 - _WARM_UP[config.measures], config.rounds + 1):
            for name, way in ways.items():
                way.take_turn()
                said = f"round {number}" if number else "warm-up"
                console.say(f"{config.name}: {said}: {name} {way.seconds[-1]:.1f} s")
    for way in ways.values():
        del way.seconds[: -config.rounds], way.made[: -config.rounds]
    return result(config, ways)


def _ways(config: EvaluationBenchmarkConfig, folder: Path) -> AbstractContextManager[dict[str, Way]]:
    if isinstance(config, GenerationBenchmarkConfig):
        from orpo_ray.bench.stages.generation import generation

        return generation(config, folder)
    if isinstance(config, JudgingBenchmarkConfig):
        from orpo_ray.bench.stages.judging import judging

        return judging(config, folder)
    if isinstance(config, ScoringBenchmarkConfig):
        from orpo_ray.bench.stages.scoring import scoring

        return scoring(config, folder)
    from orpo_ray.bench.stages.pipeline import pipeline

    return pipeline(config, folder)


def result(config: EvaluationBenchmarkConfig, ways: Mapping[str, Way]) -> dict[str, Any]:
    """Medians and spread over rounds; ratios are of the same round, beside the first way."""
    first = next(iter(ways.values()))
    contestants = {}
    for name, way in ways.items():
        per_second = [made / seconds for made, seconds in zip(way.made, way.seconds, strict=True)]
        entry: dict[str, Any] = {
            "seconds": spread(way.seconds), "makes": way.makes, "per_second": spread(per_second),
            "computed_tokens": way.computed, "rounds": {"seconds": way.seconds, "made": way.made},
        }  # fmt: skip
        if way is not first:
            entry["seconds_to_first"] = spread([s / t for s, t in zip(way.seconds, first.seconds, strict=True)])
            if way.computed is not None and first.computed is not None:
                entry["tokens_to_first"] = way.computed / first.computed
        contestants[name] = entry
    found = described(STAGES, config, torch.device("cpu")) | {"contestants": contestants}
    if config.measures == "pipeline":
        alone = (way.seconds for way in ways.values() if way is not first)
        slower = [max(each) for each in zip(*alone, strict=True)]
        found["to_the_slower"] = spread([s / t for s, t in zip(first.seconds, slower, strict=True)])
    return found
