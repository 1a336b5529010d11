"""What of a sweep's space needs models and data to be told: metrics, tokenizers, how long each trial is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from orpo_ray.config import SweepConfig
from orpo_ray.config.comparable import varied
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.prepare import PreparedData
from orpo_ray.data.tokenization import tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.terminal import Console
from orpo_ray.training.launcher import prepare_data
from orpo_ray.training.metric_names import require_metrics
from orpo_ray.training.source import schedule_of
from orpo_ray.training.starting import with_merged_adapters
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.points import Settings

_TOKENIZERS = ("model.name_or_path", "model.tokenizer", "model.revision")
_WEIGHTS = ("data.temperature", ".weight")


def require_known(config: SweepConfig, folder: SweepFolder) -> None:
    """Raises `UserError`, naming the key of the space, where some of its trials have no such metric, or cut texts into
    other tokens than the others do: their held-out pairs would be others, and what is measured by the token."""
    first = config.first_point
    require_metrics(folder.training(0, first), config.directions)
    for key, dimension in config.dimensions.items():
        runs = [folder.training(0, {**first, key: value}) for value in dimension.values]
        if key.partition(".")[0] == "objective":
            for run in runs:
                require_metrics(run, config.directions)
        if not {*_TOKENIZERS}.isdisjoint(varied(key, runs)):
            digests = [tokenizer_digest(load_tokenizer(run.model)) for run in runs]
            other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
            if other is not None:
                raise UserError(
                    f"space.{key}: {dimension.values[0]} and {dimension.values[other]} cut texts into other tokens, so "
                    "trials could not be compared"
                )


def lengths(
    config: SweepConfig, folder: SweepFolder, shared: PreparedData, console: Console
) -> Callable[[Settings], int]:
    """The optimizer steps of a trial with given settings. `shared`: the data of the space's first point."""
    keys = [key for key in config.space if key.startswith("data.") and not key.endswith(_WEIGHTS)]

    def of(settings: Settings) -> str:
        return json.dumps([settings[key] for key in keys])

    known = {of(config.first_point): shared}

    def steps(settings: Settings) -> int:
        run = folder.training(0, settings)
        if of(settings) not in known:
            known[of(settings)] = prepare_data(with_merged_adapters(run), console)
        return schedule_of(run, known[of(settings)].train).total_steps

    return steps


def steps_of_trials(config: SweepConfig, data: Pairs) -> str:
    """How many optimizer steps trials have, in words. `data`: those of the space's first point."""

    def steps(settings: Settings) -> int:
        run = config.training(config.first_point | settings, config.name, config.storage)
        return schedule_of(run, data).total_steps

    if any(key.startswith("data.") for key in config.unlike_lengths):
        return "unlike numbers of steps"
    values = {key: dimension.values for key, dimension in config.dimensions.items()}
    deciding = [key for key in values if len({steps({key: value}) for value in values[key]}) > 1]
    points = itertools.product(*(values[key] for key in deciding))
    found = sorted({steps(dict(zip(deciding, point, strict=True))) for point in points})
    return f"{found[0]} steps" if len(found) == 1 else f"{found[0]} to {found[-1]} steps"
