"""The second stage: the best trials by the cheap metric, compared by win-rate on prompts that ranked none of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orpo_ray.config import SweepConfig
from orpo_ray.config.evaluation import AGAINST, JUDGE, on_held_out
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.prepare import PreparedData
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate, read_winrates
from orpo_ray.statistics.winrate import outcomes
from orpo_ray.terminal import Console
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.selection import simultaneous_intervals

SIGNIFICANCE = 0.05


def label(index: int) -> str:
    """Of a trial among an evaluation's models."""
    return f"trial-{index:03d}"


def unseen_records(config: SweepConfig, data: PreparedData) -> list[int]:
    """Places in `data.eval` of the records whose prompts finalists answer: nothing has ranked a trial by them.

    Raises `UserError` where there are none.
    """
    asked, first = config.finalists, config.training(config.first_point, config.name, config.storage)
    assert asked is not None and data.unseen is not None
    ranked: set[tuple[int, ...]] = set()
    if config.waits_for_win_rates and first.eval.win_rate is not None:
        ranked = {prompt for part in (data.eval, data.unseen) for record, prompt in _prompts(part)
                  if record < first.eval.win_rate.prompts}  # fmt: skip
    left = [record for record, prompt in _prompts(data.unseen) if prompt not in ranked]
    if not left:
        raise UserError(
            "finalists: of the prompts of data.eval none is left that ranks no trial; raise unseen_fraction, or lower "
            "train.eval.win_rate.prompts"
        )
    return sorted(left)[: asked.prompts]


def _prompts(pairs: Pairs) -> list[tuple[int, tuple[int, ...]]]:
    """The record of each, and its prompt's tokens."""
    return [(record, tuple(pairs.pair(i)[0].tolist())) for i, record in enumerate(pairs.record_ids.tolist())]


def compare(
    config: SweepConfig, folder: SweepFolder, trials: Sequence[int], records: Sequence[int], console: Console
) -> list[dict[str, Any]]:
    """Evaluate the models of these trials on the prompts of `records`; the win-rates of each over `finalists.against`,
    best first.

    Each but the best also has `behind`: the best's win-rate over it, and whether that is told apart from an even 50 %.
    Intervals hold together, so for whichever turned out the best: those over `against`, and those of each over each.
    """
    asked = config.finalists
    assert asked is not None
    models = {label(index): str(folder.trial(index).path) for index in trials}
    run = folder.training(trials[0], {})
    evaluation = on_held_out(run, asked, models, "finalists", folder.path, config.seed, records)
    finished = evaluate(evaluation, console)
    pairs = {(pair["model"], pair["against"]): pair for pair in read_winrates(finished)["pairs"]}
    for one, other in combinations([*models, AGAINST], 2):
        if (one, other) not in pairs:
            raise UserError(f"{finished.path}: {one} and {other} were not judged on any prompt together")
    rewards = _rewards(finished.results, [*models, AGAINST], len(records), asked.rounds)
    intervals = _together(rewards, [(one, AGAINST) for one in models])
    among = _together(rewards, list(combinations(models, 2)))
    intervals |= among | {(other, one): (1 - high, 1 - low) for (one, other), (low, high) in among.items()}

    def rate(model: str, against: str) -> dict[str, Any]:
        pair = pairs[model, against]
        told_apart = pair["p_holm"] is not None and pair["p_holm"] < SIGNIFICANCE
        own = {"win_rate": pair["win_rate"], "ci95": intervals[model, against], "p_holm": pair["p_holm"]}
        return {**own, "told_apart": told_apart}

    rates = [{"trial": index, **rate(label(index), AGAINST)} for index in trials]
    rates.sort(key=lambda rate: (-rate["win_rate"], rate["trial"]))
    best = label(rates[0]["trial"])
    for behind in rates[1:]:
        behind["behind"] = rate(best, label(behind["trial"]))
    return rates


def _rewards(results: Path, labels: Sequence[str], prompts: int, rounds: int) -> dict[str, NDArray[np.float64]]:
    """What the judge gave each model's responses, `(prompts, rounds)`; NaN where it gave nothing."""
    tables = {name: np.full((prompts, rounds), np.nan) for name in labels}
    with results.open("rb") as file:
        table = pq.read_table(file, columns=["prompt", "model", "round", f"reward:{JUDGE}"])
    for prompt, model, turn, reward in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if model in tables and reward is not None:
            tables[model][prompt, turn] = reward
    return tables


def _together(
    rewards: dict[str, NDArray[np.float64]], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Intervals of the first's win-rate over the second of each pair, that hold together."""
    won = np.stack([outcomes(rewards[one], rewards[other]) for one, other in pairs])
    return dict(zip(pairs, simultaneous_intervals(won), strict=True))
