"""At what scale a paper was remade: which models, data, seeds and judge stand in place of the paper's.

Parameters are counted from the architectures, which need no weights and no network; nothing is told of a model whose
`config.json` is not on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from orpo_ray.config import TrainConfig
from orpo_ray.config.schema import ModelConfig
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_config, locate
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.stages import JUDGE, Place
from orpo_ray.report.numbers import number, percent

_AS_LARGE = 0.9
"""A model of this share of the paper's parameters counts as one of its size."""
_UNITS = {"M": 1e6, "B": 1e9}
_TITLES = {"hh": "Anthropic HH-RLHF", "ultrafeedback": "UltraFeedback"}
_INVENTED = "toy"
"""Sources of the embedded world begin so."""


@dataclass(frozen=True)
class Model:
    """A size, and what stands for it."""

    label: str
    name: str
    """What training began from."""
    parameters: int | None
    printed: str
    """`OPT-125M`; empty where it is held against nothing of the paper."""
    share: float | None
    """Of the paper's parameters."""


@dataclass(frozen=True)
class Data:
    title: str
    source: str
    """`data.train` of its ORPO runs."""
    pairs: int | None
    """That ORPO trained on; None before a run has finished."""
    printed: str

    @property
    def invented(self) -> bool:
        return self.source.startswith(_INVENTED)


@dataclass(frozen=True)
class Scale:
    models: list[Model]
    data: list[Data]
    seeds: tuple[int, ...]
    judge: str
    """Empty where no reward model of the paper's own judges."""

    @property
    def notices(self) -> list[str]:
        """What keeps it from being a replication, a sentence each; none where it is of the paper's size."""
        found = []
        small = [one for one in self.models if one.share is not None and one.share < _AS_LARGE]
        if small:
            here = _listed([short_count(one.parameters) for one in small])
            largest = max(one.share for one in small if one.share is not None)
            word = "a model" if len(small) == 1 else "models"
            size = f"1/{number(round(1 / largest))}" if largest < 0.5 else percent(largest)
            found.append(
                f"Not at the paper's scale: {word} of {here} parameters in place of "
                f"{_listed([one.printed for one in small])}, at most {size} of the size."
            )
        if invented := [one for one in self.data if one.invented]:
            place = [one.printed for one in invented if one.printed]
            found.append(
                f"Trained and judged on an invented world of requests ({_listed([one.source for one in invented])})"
                + (f" in place of {_listed(place)}." if place else ".")
            )
        return found


def scale_of(outcomes: Outcomes) -> Scale:
    config = outcomes.stages.config
    models = [_model(outcomes, label) for label in config.sizes]
    data = [_data(outcomes, label) for label in config.data]
    judge = ""
    if JUDGE in config.methods and config.judge is not None:
        found = next(one for one in models if one.label == config.judge)
        count = "" if found.parameters is None else f" ({short_count(found.parameters)} parameters)"
        judge = f"a reward model of size {found.label}{count}"
    return Scale(models, data, config.seeds, judge)


def short_count(value: int | None) -> str:
    """`1.0M` of 1,028,736."""
    if value is None:
        return "–"
    unit = "B" if value >= 999_500_000 else "M"
    return f"{value / _UNITS[unit]:.{1 if value < 99.95 * _UNITS[unit] else 0}f}{unit}"


def _model(outcomes: Outcomes, label: str) -> Model:
    size = outcomes.stages.config.sizes[label]
    trained = list(_trained(outcomes, label))
    first = trained[0][1].model if trained else None
    found = None
    for place, config in trained:
        found = found or parameters(config.model) or parameters(_kept(outcomes, place))
    share = None
    if found is not None and size.paper is not None:
        share = found / (float(size.paper[:-1]) * _UNITS[size.paper[-1]])
    name = first.name_or_path if first is not None else ""
    return Model(label, name, found, f"OPT-{size.paper}" if size.paper else "", share)


def _trained(outcomes: Outcomes, size: str) -> Iterator[tuple[Place, TrainConfig]]:
    """Runs of a size that train a policy: that of its base model first."""
    found = [
        (place, config) for place, config in outcomes.stages.configs.items()
        if place.size == size and isinstance(config, TrainConfig) and place.kind in ("base", "sft", "orpo")
    ]  # fmt: skip
    yield from sorted(found, key=lambda each: each[0].kind != "base")


def _kept(outcomes: Outcomes, place: Place) -> ModelConfig:
    return ModelConfig(name_or_path=str(outcomes.stages.folder_of(place)))


def parameters(model: ModelConfig) -> int | None:
    """Those of a model's architecture; None where that is not on this machine, or needs code of its own."""
    if model.name_or_path != "toy" and not (Path(locate(model.name_or_path)[0]) / "config.json").is_file():
        return None
    try:
        config = load_config(model.model_copy(update={"trust_remote_code": False}))
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())
    except (UserError, ValueError):  # an adapter, or an architecture that transformers has not
        return None


def _data(outcomes: Outcomes, label: str) -> Data:
    data = outcomes.stages.config.data[label]
    runs = [place for place in outcomes.stages.configs if place.kind == "orpo" and place.data == label]
    config = outcomes.stages.configs[runs[0]]
    assert isinstance(config, TrainConfig)
    train = config.data.train
    sources = [train] if isinstance(train, str) else [source.source for source in train]
    pairs = next((found for place in runs if (found := _pairs(outcomes, place)) is not None), None)
    return Data(data.title, ", ".join(sources), pairs, _TITLES[data.paper] if data.paper else "")


def _pairs(outcomes: Outcomes, place: Place) -> int | None:
    run = outcomes.run(place)
    found = None if run is None or run.summary is None else run.summary.get("pairs")
    return found if isinstance(found, int) else None


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
