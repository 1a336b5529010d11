"""The configuration of a sweep: which keys of a training run vary, how far, what counts, and how much it may cost."""

from __future__ import annotations

import json
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orpo_ray.config.comparable import settings_of, unlike_data, unlike_length, varied
from orpo_ray.config.evaluation import EvaluationConfig, Label
from orpo_ray.config.loading import load_as, parse_as
from orpo_ray.config.metrics import REWARD, WIN_RATE, Direction, Metric, known_direction, require_choosing
from orpo_ray.config.reading import read_yaml
from orpo_ray.config.schema import StorageConfig, TrainConfig, WinRateConfig
from orpo_ray.config.score import ScoreConfig
from orpo_ray.config.section import Count, CountOrAuto, FreeForm, Integer, Number, Section
from orpo_ray.config.space import Dimension, parse_dimension
from orpo_ray.errors import UserError

_TRIALS = 16
_FOLLOW = ("train.keep", "train.keep_by", "train.keep_mode", "data.unseen_fraction")


class FinalistsConfig(WinRateConfig):
    """The best trials by `metric`, compared once more by win-rate, on prompts that have ranked none of them."""

    count: Annotated[Integer, Field(ge=2, le=100)] = 3
    """How many of the best trials."""
    prompts: Count = 400
    """So many of the run's `data.eval` at the most, the first of those that rank nothing (`unseen_fraction`)."""
    rounds: Annotated[Integer, Field(ge=1, le=1000)] = 3
    """Responses of each model to each prompt."""


class SweepConfig(Section):
    """A sweep. Its folder is `storage.path/name`."""

    name: Label
    """What it is called: its folder is `storage.path/name`."""
    train: FreeForm
    """The run to vary: a training configuration's file, or the mapping itself. Its name and storage are not used."""
    overrides: list[str] = Field(default_factory=list)
    """What all trials change in it, as on the command line: [scaling.num_workers=1]."""
    space: Annotated[dict[str, str], Field(min_length=1)]
    """Dotted key to `loguniform(a, b)`, `uniform(a, b)`, `choice(a, b, …)` or, with searcher: grid, `grid(a, b, …)`."""
    metric: Metric = "eval_reward_accuracy"
    """What trials are compared by, each at its best step, whose model it keeps: a key of their evaluations, with
    `/NAME` that of one of several sources. `eval_win_rate`, which needs `train.eval.win_rate`, is compared at the last
    step."""
    mode: Direction = "max"
    """Whether the lowest or the highest of `metric` is the best."""
    unseen_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """Of the held-out pairs so many, whole prompts, rank no trial and choose no step. What the winner is worth is told
    on them, and finalists answer their prompts: on the others it was chosen for what luck gave it. Runs on rollouts are
    ranked on all that they are evaluated on."""
    trade_off: dict[Metric, Direction] = Field(default_factory=dict)
    """More metrics, and where each should go: {eval_nll: min}. Optuna seeks them together, and the report shows the
    trials that no other equals in all and beats in one; of those, the best by `metric` wins. With scheduler: none."""
    trials: Count | None = None
    """Default: 16; of a grid, all its points."""
    steps: Count | None = None
    """Begin no further trial once the trials have run so many optimizer steps together."""
    hours: Annotated[Number, Field(gt=0)] | None = None
    """Stop after so long; the trials that are done by then are compared."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """When trials stop early: unless among the best `1 / reduction` at a rung (arXiv 1810.05934); where worse than the
    median of those before; never."""
    grace_steps: Count | None = None
    """No trial stops before this step; default: a tenth of a trial's steps."""
    reduction: Annotated[Number, Field(gt=1)] = 3
    """Each rung is so many times further than the one before."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """Where trials come from: drawn at random, all of a grid, or by TPE from the trials before (arXiv 2304.11127)."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Of the searcher; the trials' own is `train.seed`."""
    concurrency: CountOrAuto = "auto"
    """Trials at a time; `auto`: as many as the cluster has room for."""
    keep: Count = 3
    """Of so many of the best trials models and checkpoints are kept."""
    finalists: FinalistsConfig | None = None
    """null: the best by `metric` is the winner."""
    storage: StorageConfig = StorageConfig()

    @field_validator("space")
    @classmethod
    def _expressions_parse(cls, space: dict[str, str]) -> dict[str, str]:
        for key, text in space.items():
            try:
                parse_dimension(text)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return space

    @model_validator(mode="after")
    def _fits_together(self) -> SweepConfig:
        kinds = {key: dimension.kind for key, dimension in self.dimensions.items()}
        for key, kind in kinds.items():
            if (kind == "grid") != (self.searcher == "grid"):
                wanted = "grid(…)" if self.searcher == "grid" else "choice(…) or a range"
                raise ValueError(f"space.{key}: {kind}(…) is not for searcher: {self.searcher}, which takes {wanted}")
        if self.searcher == "grid" and self.trials is not None:
            raise ValueError("trials: a grid has as many as it has points; leave it out")
        if self.metric in self.trade_off:
            raise ValueError(f"trade_off: {self.metric} is the sweep's metric already")
        if self.trade_off and self.scheduler != "none":
            raise ValueError("trade_off: a scheduler stops trials by one number alone; set scheduler: none")
        parts = [metric.partition("/") for metric in self.directions]  # of all held-out pairs, or of one source's
        if any(name == "eval_loss" for name, _, _ in parts) and any(
            key.split(".")[0] in ("objective", "data") for key in self.space
        ):
            raise ValueError(
                "metric: eval_loss holds the objective's own weights, so trials that differ in objective.* or data.* "
                "cannot be compared by it; use eval_reward_accuracy or eval_nll"
            )
        plain = self._checked(self.first_point, as_it_stands=True)
        for metric, direction in self.directions.items():
            require_choosing("metric", metric)
            try:
                plain.require_source_of(metric)
            except ValueError as error:
                raise ValueError(f"metric: {error}") from None
            if (better := known_direction(metric)) not in (None, direction):
                key = "mode" if metric == self.metric else f"trade_off.{metric}"
                worst = "lowest" if better == "max" else "highest"
                raise ValueError(f"{key}: the {worst} {metric} is the worst; set {better}")
        if plain.train.keep_by not in ("eval_loss" if plain.rollouts is None else REWARD, self.metric):
            raise ValueError(f"train.keep_by: {plain.train.keep_by} is not the sweep's metric, which trials keep by")
        if plain.data.unseen_fraction not in (None, self.unseen_fraction):
            raise ValueError("train.data.unseen_fraction: is the sweep's unseen_fraction; set that")
        base = self._checked(self.first_point)
        self._require_alike(base)
        if self.finalists is not None:
            if base.rollouts is not None:
                raise ValueError("finalists: answer prompts that rank no trial, and of rollouts none are set apart")
            if base.data.eval is None:
                raise ValueError("finalists: asks the prompts of the run's data.eval, which is not set")
            if not isinstance(base.data.eval, str):
                raise ValueError("finalists: asks the prompts of the run's data.eval, which has to be one source then")
            if self.keep < self.finalists.count:
                raise ValueError(f"keep: {self.keep} is fewer than the {self.finalists.count} finalists")
        if self.waits_for_win_rates and base.eval.win_rate is None:
            raise ValueError("metric: eval_win_rate needs train.eval.win_rate, which says against whom")
        return self

    @property
    def waits_for_win_rates(self) -> bool:
        """Whether trials are compared by what is known after their models have gone, but for the last."""
        return any(metric.startswith(WIN_RATE) for metric in self.directions)

    @property
    def directions(self) -> dict[str, Direction]:
        """`metric` first."""
        return {self.metric: self.mode, **self.trade_off}

    @property
    def dimensions(self) -> dict[str, Dimension]:
        return {key: parse_dimension(text) for key, text in self.space.items()}

    @property
    def number_of_trials(self) -> int:
        points = 1
        for dimension in self.dimensions.values():
            points *= len(dimension.values)
        return points if self.searcher == "grid" else self.trials or _TRIALS

    @property
    def run_dir(self) -> Path:
        return self.storage.run_dir(self.name)

    def training(self, settings: dict[str, Any], name: str, storage: StorageConfig) -> TrainConfig:
        """The run with these `settings` of dotted keys. Raises `UserError`, naming the key that does not fit."""
        # By what a trial is ranked it keeps its model, so that its number is of that.
        own = {"train.keep_by": self.metric, "train.keep_mode": self.mode}
        run = self._parsed(settings, name, storage, {"train.keep": "last"} if self.waits_for_win_rates else own)
        if run.rollouts is not None:
            return run  # none of the prompts that it is measured on are set apart
        data = run.data.model_copy(update={"unseen_fraction": self.unseen_fraction})
        return run.model_copy(update={"data": data})

    def _parsed(self, settings: dict[str, Any], name: str, storage: StorageConfig, own: dict[str, Any]) -> TrainConfig:
        mapping = {**self.train, "name": name, "storage": storage.model_dump()}
        texts = [f"{key}={json.dumps(value)}" for key, value in {**settings, **own}.items()]
        return parse_as(TrainConfig, mapping, [*self.overrides, *texts], "train")

    @property
    def first_point(self) -> dict[str, Any]:
        """A point of the space, for what all trials share."""
        return {key: dimension.values[0] for key, dimension in self.dimensions.items()}

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs for a trial, and for the finalists' engine and scorer."""
        return max(2, self.training(self.first_point, self.name, self.storage).cpus)

    @property
    def own_point(self) -> dict[str, Any] | None:
        """What the run to vary has by itself; None where that is not in the space, or no run without a point of it."""
        try:
            run = self.training({}, self.name, self.storage)
            held, whole = dict(settings_of(run)), run.model_dump(mode="json", by_alias=True)
            own = {key: held[key] if key in held else reduce(_part, key.split("."), whole) for key in self.space}
        except (UserError, KeyError, TypeError):
            return None
        return own if all(dimension.holds(own[key]) for key, dimension in self.dimensions.items()) else None

    def _require_alike(self, base: TrainConfig) -> None:
        """Raises `ValueError` where trials of the space could not be compared, or not be stopped."""
        differing = set()
        for key in self.space:
            runs = self._runs_of(key)
            for name in (names := varied(key, runs)):
                reason = unlike_data(name, base) or ("" if self.scheduler == "none" else unlike_length(name, base))
                if reason:
                    raise ValueError(f"space.{key}: {reason}")
            if len({run.reading for run in runs}) > 1:
                raise ValueError(f"space.{key}: kto takes other comparisons of a record than the others do")
            differing |= {*names}
        weighed = any(name.startswith("rollouts.rewards.") for name in differing)
        for name, slash, label in (metric.partition("/") for metric in self.directions):
            if name == REWARD and weighed and (not label or f"rollouts.rewards.{label}.path" in differing):
                raise ValueError(
                    f"metric: {name}{slash}{label} is of the rewards that the space varies; "
                    f"use {REWARD}/LABEL of one whose path is the same in all trials"
                )
            if name == "eval_kl" and differing & {"objective.reference", "objective.pairs.reference"}:
                raise ValueError("metric: eval_kl is to the reference that the space varies")

    @cached_property
    def unlike_lengths(self) -> list[str]:
        """Keys of the space by which trials see other numbers of pairs or prompts; without a scheduler they may."""
        base = self.training(self.first_point, self.name, self.storage)
        return [key for key in self.space if any(unlike_length(name, base) for name in varied(key, self._runs_of(key)))]

    def _runs_of(self, key: str) -> list[TrainConfig]:
        """Trials that differ in this key of the space alone: one for each of its values, or for the ends of a range."""
        return [self._checked({**self.first_point, key: value}) for value in self.dimensions[key].values]

    def _checked(self, settings: dict[str, Any], *, as_it_stands: bool = False) -> TrainConfig:
        """`as_it_stands`: without what the sweep sets for its trials."""
        if taken := {"name", "storage"} & {key.split(".")[0] for key in settings}:
            raise ValueError(f"space.{min(taken)}: is each trial's own")
        within = {f"{key}.{name}" for key, value in settings.items() if isinstance(value, dict) for name in value}
        if taken := set(_FOLLOW) & {*settings, *within}:
            raise ValueError(f"space.{min(taken)}: follows from the sweep's metric and unseen_fraction")
        try:
            parse = partial(self._parsed, own={}) if as_it_stands else self.training
            return parse(settings, self.name, self.storage)
        except UserError as error:
            raise ValueError(str(error)) from None


def _part(section: Any, part: str) -> Any:
    return section[int(part)] if isinstance(section, list) else section[part]


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> SweepConfig:
    """As `load_config`; where `train` names a file, that file's mapping takes its place before overrides."""
    mapping = read_yaml(path)
    if isinstance(mapping.get("train"), str):
        mapping["train"] = read_yaml(mapping["train"])
    return parse_as(SweepConfig, mapping, overrides or [], origin=str(path))


def load_any(
    path: str | Path, overrides: list[str] | None = None
) -> TrainConfig | EvaluationConfig | ScoreConfig | SweepConfig:
    """The configuration of a run, an evaluation, scores or a sweep, by the key that only one of them has."""
    mapping = read_yaml(path)
    if "space" in mapping:
        return load_sweep(path, overrides)
    if "models" in mapping or ("prompts" in mapping and "reward_models" not in mapping):
        return load_as(EvaluationConfig, path, overrides)
    if "reward_models" in mapping:
        return load_as(ScoreConfig, path, overrides)
    return load_as(TrainConfig, path, overrides)
