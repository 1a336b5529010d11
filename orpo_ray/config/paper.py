"""The configuration of the paper remade: which methods train which models on which data, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from orpo_ray.config.evaluation import Label
from orpo_ray.config.loading import load_as
from orpo_ray.config.paths import Place
from orpo_ray.config.schema import StorageConfig
from orpo_ray.config.section import FreeForm, Integer, RunName, Section

Method = Literal["base", "sft", "dpo", "ppo", "orpo", "probability_ratio", "reward", "judge"]
METHODS: tuple[Method, ...] = get_args(Method)
COMPARED: tuple[Method, ...] = ("sft", "dpo", "ppo", "orpo")
"""Those that answer in Tables 2 and 3, as far as there are any."""
DONE = "done"
"""In the paper's folder: a file for each stage that was done, with the digest of what decided it; empty where it has
been begun again since."""

Overlay = Annotated[dict[Method, FreeForm], Field(default_factory=dict)]
"""Method to keys of a training run's configuration."""


class PaperSize(Section):
    """A size of model, which all methods train."""

    paper: Literal["125M", "350M", "1.3B"] | None = None
    """The row of the paper's Tables 2 and 3 that it is held against; null: none."""
    base: Place | None = None
    """What training begins from: Hub id or folder; where `methods` has a base, what that begins from."""
    run: FreeForm = Field(default_factory=dict)
    """Keys of the training runs of this size."""
    methods: Overlay
    """Method to keys of its training runs of this size."""
    evaluation: FreeForm = Field(default_factory=dict)
    """Keys of the evaluations of this size."""


class PaperData(Section):
    """A data set, on which all methods train and are compared."""

    paper: Literal["hh", "ultrafeedback"] | None = None
    """The paper's table that it is held against: 2 (HH-RLHF) or 3 (UltraFeedback); null: none."""
    title: str
    """What the page calls it."""
    run: FreeForm = Field(default_factory=dict)
    """Keys of the training runs on this data set."""
    methods: Overlay
    """Method to keys of its training runs on this data set."""
    evaluation: FreeForm = Field(default_factory=dict)
    """Keys of the evaluations on this data set."""


class PaperFigures(Section):
    """Whose training Figures 3, 7, 8 and 9 show."""

    data: Label
    """A label of `data`."""
    size: Label
    """A label of `sizes`."""


class PaperBenchmark(Section):
    """The methods of one data set and size, of the first seed, evaluated once more: Tables 1 and 6, Figure 10."""

    data: Label
    """A label of `data`."""
    size: Label
    """A label of `sizes`."""
    evaluation: FreeForm
    """Keys of an evaluation; `models` may hold more than the methods."""


class PaperConfig(Section):
    """The paper remade. Its folder is `storage.path/name`: `stages/` has a folder for each stage, `paper/` the page.

    A training run's settings are those of all, of its data set and of its size, and then those of its method, each over
    those before: run, data.D.run, sizes.S.run, methods.M, data.D.methods.M, sizes.S.methods.M. A text like `<sft>`
    stands for the folder of that stage, of the same data, size and seed.
    """

    name: RunName
    """What it is called: its folder is `storage.path/name`."""
    seeds: Annotated[tuple[Annotated[Integer, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (42,)
    """Of training: every policy is trained anew for each. Base, reward models and sweep have the first."""
    run: FreeForm = Field(default_factory=dict)
    """Keys of every training run's configuration."""
    methods: Annotated[dict[Method, FreeForm], Field(min_length=1)]
    """`base` is one run for each size; `reward` (what PPO learns from) and `judge` are one for each data set;
    `probability_ratio` is trained where `figures` says."""
    sizes: Annotated[dict[Label, PaperSize], Field(min_length=1)]
    """Label to a size of model, which all methods train."""
    data: Annotated[dict[Label, PaperData], Field(min_length=1)]
    """Label to a data set, on which all methods train and are compared."""
    reward: Label | None = None
    """The size of the reward model that PPO learns from."""
    judge: Label | None = None
    """The size of the reward model that judges."""
    figures: PaperFigures
    sweep: FreeForm | None = None
    """Keys of a sweep of the ORPO run of `figures`, such as its space; null: none."""
    evaluation: FreeForm = Field(default_factory=dict)
    """Keys of every evaluation; its models are the methods, and `judge` is among its reward models."""
    benchmarks: dict[Label, PaperBenchmark] = Field(default_factory=dict)
    """Label to a further evaluation of the methods of one data set and size."""
    storage: StorageConfig = StorageConfig()

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("names one twice")
        return seeds

    @model_validator(mode="after")
    def _names_what_there_is(self) -> PaperConfig:
        for key, wanted in (("orpo", "which the paper is about"), ("sft", "which it compares with")):
            if key not in self.methods:
                raise ValueError(f"methods: has no {key}, {wanted}")
        for kind in ("reward", "judge"):
            size = getattr(self, kind)
            if (size is None) != (kind not in self.methods):
                raise ValueError(f"{kind}: says the size of methods.{kind}; give both, or neither")
            self._require_size(kind, size)
        if "judge" not in self.methods and not self._has_judges:
            raise ValueError("methods: has no judge, and evaluation names neither reward_models nor judges")
        places: dict[str, PaperFigures | PaperBenchmark] = {"figures": self.figures}
        places |= {f"benchmarks.{label}": benchmark for label, benchmark in self.benchmarks.items()}
        for name, place in places.items():
            self._require_size(f"{name}.size", place.size)
            if place.data not in self.data:
                raise ValueError(f"{name}.data: no data set is called {place.data}: there are {', '.join(self.data)}")
        for label, size in self.sizes.items():
            if unknown := set(size.methods) - set(self.methods):
                raise ValueError(f"sizes.{label}.methods: methods has no {min(unknown)}")
        for label, data in self.data.items():
            if unknown := set(data.methods) - set(self.methods):
                raise ValueError(f"data.{label}.methods: methods has no {min(unknown)}")
        rows = {"sizes": [str(size.paper) for size in self.sizes.values() if size.paper]}
        rows |= {"data": [str(data.paper) for data in self.data.values() if data.paper]}
        for name, papers in rows.items():
            if twice := next((row for row in papers if papers.count(row) > 1), None):
                raise ValueError(f"{name}: two are held against the paper's {twice}")
        return self

    def _require_size(self, key: str, size: str | None) -> None:
        if size is not None and size not in self.sizes:
            raise ValueError(f"{key}: no size is called {size}: there are {', '.join(self.sizes)}")

    @property
    def _has_judges(self) -> bool:
        overlays = (self.evaluation, *(data.evaluation for data in self.data.values()))
        return any(overlay.get("reward_models") or overlay.get("judges") for overlay in overlays)

    @property
    def compared(self) -> tuple[Method, ...]:
        """The methods that answer in every evaluation."""
        return tuple(method for method in COMPARED if method in self.methods)


def load_paper(path: str | Path, overrides: list[str] | None = None) -> PaperConfig:
    """As `load_config`; what it says of single stages is checked where they are made (`paper.stages`)."""
    return load_as(PaperConfig, path, overrides)
