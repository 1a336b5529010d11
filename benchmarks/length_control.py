"""The win-rate at equal lengths beside a published one: why its penalty is what it is, and what its interval covers.

python benchmarks/length_control.py [../shared/data/alpaca_eval/verdicts.json.gz]

Of 29 models there are the judge's preferences, the characters of both responses, and the length-controlled rate that
AlpacaEval 2 published; its fit knows the difficulty of each instruction, this project's does not. The table is made
from these and written to `benchmarks/results/length_control.json`. Where the file is absent nothing is done.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from orpo_ray.statistics.winrate import LENGTH_PENALTY, length_control

Floats = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
VERDICTS = HERE.parents[1] / "shared" / "data" / "alpaca_eval" / "verdicts.json.gz"
RESULTS = HERE / "results" / "length_control.json"
WEIGHTS = (1, 5, 10, 20, 30, 40, 50, 60, 80, 100, 200)
FEWER = (50, 100, 200, 400)
FOLDS = 5


class Published(NamedTuple):
    """One model against the reference; arrays are `(instructions,)`, rates in percent."""

    name: str
    win_rate: float
    length_controlled: float
    outcome: Floats
    characters: Floats
    reference: Floats


def published(file: Path) -> list[Published]:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        content = json.load(opened)
    return [
        Published(
            name, entry["published"]["win_rate"], entry["published"]["length_controlled_winrate"],
            np.array(entry["preference"], dtype=np.float64) - 1,
            np.array(entry["model_characters"], dtype=np.float64),
            np.array(entry["reference_characters"], dtype=np.float64),
        )
        for name, entry in content.items()
    ]  # fmt: skip


def controlled(model: Published, rows: Any = slice(None), **options: Any) -> Any:
    arrays = (model.outcome, model.characters, model.reference)
    return length_control(*(each[rows] for each in arrays), **options)


def rates(models: list[Published], penalty: tuple[float, float]) -> Floats:
    """In percent, `(models,)`."""
    return np.array([100 * controlled(model, penalty=penalty, resamples=0).win_rate for model in models])


def measures(found: Floats, truth: Floats) -> dict[str, float]:
    apart = np.abs(found - truth)
    return {
        "mean_distance": round(float(apart.mean()), 3),
        "largest_distance": round(float(apart.max()), 3),
        "mean_difference": round(float((found - truth).mean()), 3),
        "spearman": round(float(spearmanr(found, truth).statistic), 4),
    }


def cross_validated(by_weight: dict[int, Floats], truth: Floats, draws: int = 20) -> dict[str, Any]:
    """The weight is chosen on four fifths of the models and tried on the rest, over random folds."""
    rng = np.random.default_rng(0)
    distances, chosen = [], []
    for _ in range(draws):
        folds = rng.permutation(len(truth)) % FOLDS
        for fold in range(FOLDS):
            rest, held = folds != fold, folds == fold
            best = min(by_weight, key=lambda weight: float(np.abs(by_weight[weight] - truth)[rest].mean()))
            chosen.append(best)
            distances += np.abs(by_weight[best] - truth)[held].tolist()
    counts = {str(weight): chosen.count(weight) for weight in sorted(set(chosen))}
    return {"mean_distance": round(float(np.mean(distances)), 3), "chosen": counts}


def fewer_prompts(models: list[Published], draws: int = 6) -> dict[str, dict[str, float]]:
    """Mean distance from the published rate with fewer instructions, by the weight in prompts."""
    found: dict[str, dict[str, float]] = {}
    for prompts in FEWER:
        rng = np.random.default_rng(prompts)
        samples = [(model, rng.permutation(len(model.outcome))[:prompts]) for model in models for _ in range(draws)]
        options: dict[str, tuple[float, float]] = {str(weight): (1.0, float(weight)) for weight in WEIGHTS[:9]}
        options["chosen"] = LENGTH_PENALTY
        found[str(prompts)] = {
            name: _distance([(model, controlled(model, rows, penalty=penalty, resamples=0)) for model, rows in samples])
            for name, penalty in options.items()
        }
        found[str(prompts)]["win_rate"] = round(
            float(np.mean([abs(100 * m.outcome[rows].mean() - m.length_controlled) for m, rows in samples])), 3
        )
    return found


def _distance(found: list[tuple[Published, Any]]) -> float:
    told = [
        abs(100 * control.win_rate - model.length_controlled) for model, control in found if control.unknown is None
    ]
    return round(float(np.mean(told)), 3)


def coverage(models: list[Published], prompts: int, samples: int) -> dict[str, float]:
    """How often a sample's interval holds the number of all instructions, from which it was drawn with replacement."""
    rng = np.random.default_rng(prompts)
    covered, untold, width = [], 0, []
    for model in models:
        truth = controlled(model, resamples=0).win_rate
        for seed in range(samples):
            rows = rng.integers(len(model.outcome), size=prompts)
            found = controlled(model, rows, resamples=300, seed=seed)
            if found.ci95 is None:
                untold += 1
                continue
            low, high = found.ci95
            covered.append(low <= truth <= high)
            width.append(high - low)
    return {
        "covered": round(float(np.mean(covered)), 4), "intervals": len(covered), "cannot_be_told": untold,
        "mean_width_in_points": round(100 * float(np.mean(width)), 2),
    }  # fmt: skip


def tokenizers() -> dict[str, dict[str, float]]:
    """Equal models before a judge that likes length, B's tokenizer 20 % wordier: rates of 12 evaluations in percent."""
    by: dict[str, list[float]] = {"characters": [], "tokens": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a, b = np.exp(rng.normal(0, 0.3, 1000) + rng.normal(6.5, 0.5, (2, 1000))).round()
        slope = np.tanh((a - b) / (a - b).std())
        won = (rng.random(1000) < 1 / (1 + np.exp(-1.5 * slope))).astype(np.float64)
        ways: dict[str, Callable[[Floats], Floats]] = {"characters": lambda b: b, "tokens": lambda b: 1.2 * b}
        for name, way in ways.items():
            rate = length_control(won, a, way(b), resamples=0).win_rate
            by[name].append(100 * (np.nan if rate is None else rate))
    return {name: {"mean": round(float(np.mean(v)), 2), "sd": round(float(np.std(v)), 2)} for name, v in by.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verdicts", type=Path, nargs="?", default=VERDICTS)
    file = parser.parse_args().verdicts
    if not file.is_file():
        print(f"{file} is absent: nothing to compare with")
        return
    models = published(file)
    truth = np.array([model.length_controlled for model in models])
    by_weight = {weight: rates(models, (1.0, float(weight))) for weight in WEIGHTS}
    chosen = rates(models, LENGTH_PENALTY)
    found = {
        "models": len(models),
        "penalty": LENGTH_PENALTY,
        "chosen": measures(chosen, truth),
        "win_rate": measures(np.array([model.win_rate for model in models]), truth),
        "by_weight": {str(weight): measures(rate, truth) for weight, rate in by_weight.items()},
        "cross_validated": cross_validated(by_weight, truth),
        "fewer_prompts": fewer_prompts(models),
        "coverage": {str(prompts): coverage(models, prompts, 24) for prompts in (50, 100, 300, 805)},
        "tokenizers": tokenizers(),
        "each": {
            model.name: {"win_rate": round(model.win_rate, 2), "published": round(model.length_controlled, 2),
                         "here": round(float(rate), 2)}
            for model, rate in zip(models, chosen, strict=True)
        },
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if key != "each"}, indent=1))


if __name__ == "__main__":
    main()
