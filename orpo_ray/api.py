"""What the commands do, from Python: each returns what it made as an object. `import orpo_ray` has these at hand.

A configuration is a YAML file, its mapping, or a validated section; `overrides` are dotted keys with their values. In a
mapping, a `Path` or what was made may stand where a folder is named. Mistakes raise `UserError` of one line. What is
made is known by `storage.path/name`: the same call goes on with what was interrupted, and leaves finished work be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from orpo_ray.config import (
    EvaluationConfig,
    ScoreConfig,
    StorageConfig,
    SweepConfig,
    TrainConfig,
    load_as,
    load_config,
    load_sweep,
    parse_as,
)
from orpo_ray.config.section import Section
from orpo_ray.errors import UserError
from orpo_ray.terminal import Console

if TYPE_CHECKING:
    import pandas as pd

    from orpo_ray.inference.policy import Policy
    from orpo_ray.stages.graph import StageConfig

Root = TypeVar("Root", bound=Section)
Settings = str | Path | Mapping[str, Any]


class Made:
    """The folder of something that was carried out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def report(self) -> Path:
        """Its page."""
        return self.path / "report.html"

    @property
    def config(self) -> dict[str, Any]:
        """As it was carried out, defaults and all."""
        found: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        return found

    def _json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return found

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(self.path / name)


class TrainingRun(Made):
    @property
    def model(self) -> Path:
        """The kept model, in Hugging Face format."""
        return self.path / "model"

    @property
    def summary(self) -> dict[str, Any]:
        """What came of it: steps, the kept step, its evaluation."""
        return self._json("summary.json")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row for each line of `metrics.jsonl`; what is of evaluations alone begins with `eval_`."""
        import pandas as pd

        return pd.read_json(self.path / "metrics.jsonl", lines=True)


class Evaluation(Made):
    @cached_property
    def numbers(self) -> dict[str, Any]:
        """All of `winrates.json`."""
        return self._json("winrates.json")

    @cached_property
    def winrates(self) -> pd.DataFrame:
        """Every pair of models by every judge: win-rate, 95 % interval (`low`, `high`), p-value, and that by Holm's
        correction for all of them. Win-rates are fractions; ties count half."""
        import pandas as pd

        rows = [
            {
                "model": pair["model"], "against": pair["against"], "judge": pair["reward_model"],
                "win_rate": pair["win_rate"], "low": pair["ci95"][0], "high": pair["ci95"][1],
                "p_value": pair["p_value"], "p_holm": pair["p_holm"], "prompts": pair["prompts"],
            }
            for pair in self.numbers["pairs"]
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def win_rate(self, model: str, against: str, judge: str | None = None) -> tuple[float, float, float]:
        """Of `model` over `against` as (win-rate, low, high), fractions; `judge`: default, the first one.

        Raises `UserError` where the evaluation has no such pair.
        """
        found = self.winrates
        judge = judge if judge is not None else next(iter(found["judge"]), None)
        for one, other, turned in ((model, against, False), (against, model, True)):
            rows = found[(found["model"] == one) & (found["against"] == other) & (found["judge"] == judge)]
            for row in rows.itertuples():
                rate, low, high = float(row.win_rate), float(row.low), float(row.high)
                return (1 - rate, 1 - high, 1 - low) if turned else (rate, low, high)
        raise UserError(f"{self.path}: has no comparison of {model} with {against} by {judge}")

    @cached_property
    def responses(self) -> pd.DataFrame:
        """Every response with its rewards: `results.parquet`."""
        return self._table("results.parquet")


class Sweep(Made):
    @property
    def best(self) -> dict[str, Any]:
        """The configuration to train with."""
        found: dict[str, Any] = yaml.safe_load((self.path / "best.yaml").read_text(encoding="utf-8"))
        return found

    @cached_property
    def results(self) -> pd.DataFrame:
        """Every evaluation of every trial: `results.parquet`."""
        return self._table("results.parquet")


class Scores(Made):
    @property
    def numbers(self) -> dict[str, Any]:
        """All of `scores.json`."""
        return self._json("scores.json")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every response with its rewards: `scores.parquet`."""
        return self._table("scores.parquet")


def train(config: Settings | TrainConfig, overrides: Mapping[str, Any] | None = None) -> TrainingRun:
    """Train a model, as `orpo-ray train` does. Raises `UserError`."""
    return TrainingRun(_carried_out(_resolved(TrainConfig, config, overrides)))


def evaluate(config: Settings | EvaluationConfig, overrides: Mapping[str, Any] | None = None) -> Evaluation:
    """Compare models by win-rate, as `orpo-ray evaluate` does. Raises `UserError`."""
    return Evaluation(_carried_out(_resolved(EvaluationConfig, config, overrides)))


def sweep(config: Settings | SweepConfig, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """Search settings of a run, as `orpo-ray sweep` does. Raises `UserError`."""
    return Sweep(_carried_out(_resolved(SweepConfig, config, overrides)))


def score(config: Settings | ScoreConfig, overrides: Mapping[str, Any] | None = None) -> Scores:
    """Score responses by reward models, as `orpo-ray score` does. Raises `UserError`."""
    from orpo_ray.cluster.connection import connect
    from orpo_ray.evaluation.score import score as run
    from orpo_ray.storage.mirror import mirrored

    resolved = _resolved(ScoreConfig, config, overrides)
    connect(resolved.cpus)
    with mirrored(resolved.storage, resolved.name):
        return Scores(run(resolved).path)


def load_policy(path: str | Path, *, dtype: str = "auto", chat_template: str | None = None) -> Policy:
    """A model that answers in this process, by transformers' `generate`: a run folder, a Hugging Face folder, a Hub id
    or a LoRA adapter. `dtype`: what it computes in (`auto`: as it is stored). Raises `UserError`."""
    from orpo_ray.inference.policy import Policy

    asked = {"path": str(path), "dtype": dtype, "chat_template": chat_template}
    return Policy(asked, StorageConfig().cache_dir)


def _carried_out(config: StageConfig) -> Path:
    from orpo_ray.cluster.connection import connect
    from orpo_ray.stages.carrying_out import carry_out

    connect(config.cpus)
    return carry_out(config, {}, Console()).parent


def _resolved(schema: type[Root], config: Settings | Root, overrides: Mapping[str, Any] | None) -> Root:
    if isinstance(config, schema):
        config = config.model_dump(by_alias=True)
    texts = [f"{key}={_written(key, value)}" for key, value in (overrides or {}).items()]
    if isinstance(config, Mapping):
        return parse_as(schema, _plain(config), texts, origin="the configuration")
    if not isinstance(config, str | Path):
        raise UserError(f"a configuration is a file, a mapping or a {schema.__name__} (got {type(config).__name__})")
    loaders: dict[type, Any] = {TrainConfig: load_config, SweepConfig: load_sweep}
    found: Root = loaders[schema](config, texts) if schema in loaders else load_as(schema, config, texts)
    return found


def _written(key: str, value: Any) -> str:
    """As a command's override has it: JSON is YAML, but that YAML takes half of a surrogate pair for no text."""
    try:
        return json.dumps(_plain(value), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: cannot be written in a configuration: {error}") from None


def _plain(value: Any) -> Any:
    """As YAML has it: what was made stands for its folder."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value.path if isinstance(value, Made) else value) if isinstance(value, Made | Path) else value
