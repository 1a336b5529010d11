"""Every key that may be a path refuses, in one plain line, what can be none: nobody's home folder, and NUL."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from orpo_ray.config import EvaluationConfig, ScoreConfig, TrainConfig, parse_as
from orpo_ray.config.benchmark import load_benchmark
from orpo_ray.config.evaluation_benchmark import (
    GenerationBenchmarkConfig,
    JudgingBenchmarkConfig,
    PipelineBenchmarkConfig,
    ScoringBenchmarkConfig,
)
from orpo_ray.config.paths import expanded
from orpo_ray.config.section import Section
from orpo_ray.errors import UserError

RUN: dict[str, Any] = {"name": "r", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
ROLLOUTS = {**RUN, "objective": {"name": "ppo"}, "rollouts": {"rewards": {"r": {"path": "toy"}}}}
WON = {**RUN, "eval": {"win_rate": {"against": "x", "reward_model": "toy"}}}
SEVERAL = {**RUN, "data": {"train": [{"name": "one", "source": "toy"}]}}
EVALUATION: dict[str, Any] = {
    "name": "e", "models": {"a": {"path": "x"}, "b": "y.json"}, "prompts": {"source": "toy"},
    "reward_models": {"r": "toy"},
    "judges": {
        "local": {"kind": "vllm", "model": "m"}, "far": {"kind": "openai", "base_url": "https://x/v1", "model": "m"},
    },
}  # fmt: skip
SCORES = {"name": "s", "reward_models": {"r": "toy"}, "prompts": {"source": "toy"}}
STAGES = {"name": "s", "tokenizer": "t", "prompts": {"source": "toy"}}
MEASURED = {**STAGES, "policy": "p", "judge": "j", "measures": "pipeline"}

STORED = ("storage.path", "storage.cache", "storage.checkpoints", "storage.mirror")
KEYS: list[tuple[type[Section], dict[str, Any], str]] = [
    *((TrainConfig, RUN, key) for key in ("model.name_or_path", "model.tokenizer", "data.train", "data.eval", *STORED)),
    *((TrainConfig, WON, f"eval.win_rate.{key}") for key in ("against", "reward_model")),
    *((TrainConfig, {**RUN, "objective": {"name": name}}, "objective.reference") for name in ("dpo", "ipo", "kto")),
    *((TrainConfig, ROLLOUTS, key) for key in (
        "objective.critic", "objective.reference", "rollouts.rewards.r", "rollouts.rewards.r.path",
    )),
    (TrainConfig, SEVERAL, "data.train.0.source"),
    *((EvaluationConfig, EVALUATION, key) for key in (
        "benchmark", "models.a.path", "models.a", "models.b.outputs", "prompts.source", "reward_models.r", "embedder",
        "judges.local.model", "judges.far.tokenizer", "judging.prompt", "judging.references", "leaderboard.difficulty",
        "leaderboard.published", *STORED,
    )),
    *((ScoreConfig, SCORES, key) for key in ("benchmark", "reward_models.r", "prompts.source", *STORED)),
    (GenerationBenchmarkConfig, {**STAGES, "measures": "generation"}, "policy"),
    (ScoringBenchmarkConfig, {**STAGES, "measures": "scoring"}, "judge"),
    (JudgingBenchmarkConfig, {**STAGES, "measures": "judging"}, "judge"),
    *((PipelineBenchmarkConfig, MEASURED, key) for key in ("tokenizer", "policy", "judge", "prompts.source")),
]  # fmt: skip
NONE = {"home": ("~nosuchuser/x", "there is no home folder ~nosuchuser here"), "NUL": ("a\0b", "NUL")}


def with_value(mapping: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    """`mapping` with the dotted key set, as who calls from Python may set it (YAML takes no NUL)."""
    found = here = copy.deepcopy(mapping)
    *above, last = key.split(".")
    for part in above:
        below: Any = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        if isinstance(below, str):  # a path alone stands for what is found there
            below = here[part] = {}
        here = below
    here[last] = value
    return found


@pytest.mark.parametrize("kind", NONE)
@pytest.mark.parametrize(("schema", "mapping", "key"), KEYS, ids=[f"{s.__name__}-{k}" for s, _, k in KEYS])
def test_a_text_that_can_be_no_path_is_told_with_its_key(
    schema: type[Section], mapping: dict[str, Any], key: str, kind: str
) -> None:
    value, told = NONE[kind]
    with pytest.raises(UserError) as error:
        parse_as(schema, with_value(mapping, key, value), [], "f.yaml")
    line = str(error.value)
    assert line.startswith(f"f.yaml: {key}") and told in line
    assert "\n" not in line and "\0" not in line


@pytest.mark.parametrize("text", ["~/x", "runs/~x", "./~x", "org/name", "s3://bucket/~x", "a" * 5000, ""])
def test_whatever_else_may_be_a_path_or_an_id(text: str) -> None:
    assert EvaluationConfig.model_validate(with_value(EVALUATION, "prompts.source", text)).prompts.source == text
    assert "/~/" not in f"/{expanded(text)}/"


def test_a_benchmark_s_name_that_is_too_long_for_a_file_is_told() -> None:
    with pytest.raises(UserError, match=r"^f\.yaml: benchmark: 'aaa.* is no file, and none that comes along"):
        parse_as(EvaluationConfig, {**EVALUATION, "benchmark": "a" * 5000}, [], "f.yaml")


def test_so_it_is_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(str(MEASURED).replace("'j'", "'~nosuchuser/j'"))
    with pytest.raises(UserError, match=r"b\.yaml: judge: there is no home folder ~nosuchuser here"):
        load_benchmark(tmp_path / "b.yaml")


@pytest.mark.parametrize("key", ["checkpoints", "mirror"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://", "names no bucket and no folder (got s3://)"),
        ("gs:///?region=x", "names no bucket and no folder (got gs:///?region=x)"),
        ("s3:/bucket/runs", "is a folder or a URL, which has two slashes (got s3:/bucket/runs)"),
    ],
)
def test_a_url_without_a_place_is_told(key: str, place: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"c.yaml: storage.{key}: {message}")):
        parse_as(TrainConfig, {**RUN, "storage": {key: place}}, [], "c.yaml")


@pytest.mark.parametrize("place", ["s3://bucket", "file:///runs", "/runs", "runs", "gs://b/x?anonymous=true", "a:b/c"])
def test_any_other_place_is_taken(place: str) -> None:
    parse_as(TrainConfig, {**RUN, "storage": {"mirror": place, "checkpoints": place}}, [], "c.yaml")
