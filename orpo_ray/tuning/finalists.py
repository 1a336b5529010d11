"""The second stage: the best trials by the cheap metric, compared by win-rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpo_ray.config import SweepConfig
from orpo_ray.config.evaluation import AGAINST, on_held_out
from orpo_ray.evaluation.evaluate import evaluate, read_winrates
from orpo_ray.terminal import Console
from orpo_ray.tuning.folder import SweepFolder

SIGNIFICANCE = 0.05


def label(index: int) -> str:
    """Of a trial among an evaluation's models."""
    return f"trial-{index:03d}"


def compare(config: SweepConfig, folder: SweepFolder, trials: Sequence[int], console: Console) -> list[dict[str, Any]]:
    """Evaluate the models of these trials; the win-rates of each over `finalists.against`, best first.

    Each but the best also has `behind`: the best's win-rate over it, and whether that is told apart from an even 50 %.
    """
    asked = config.finalists
    assert asked is not None
    models = {label(index): str(folder.trial(index).path) for index in trials}
    run = folder.training(trials[0], {})
    evaluation = on_held_out(run, asked, models, "finalists", folder.path, config.seed)
    found = read_winrates(evaluate(evaluation, console))
    pairs = {(pair["model"], pair["against"]): pair for pair in found["pairs"]}
    rates = [{"trial": index, **_rate(pairs[label(index), AGAINST])} for index in trials]
    rates.sort(key=lambda rate: (-rate["win_rate"], rate["trial"]))
    best = label(rates[0]["trial"])
    for rate in rates[1:]:
        rate["behind"] = _rate(pairs[best, label(rate["trial"])])
    return rates


def _rate(pair: dict[str, Any]) -> dict[str, Any]:
    told_apart = pair["p_holm"] is not None and pair["p_holm"] < SIGNIFICANCE
    return {**{key: pair[key] for key in ("win_rate", "ci95", "p_holm")}, "told_apart": told_apart}
