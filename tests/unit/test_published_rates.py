"""The win-rate at equal lengths beside the one that AlpacaEval 2 published, of the 29 models at `../shared`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from orpo_ray.statistics.winrate import length_control, mean_outcome

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "length_control.json"


@pytest.fixture(scope="module")
def models(shared: Path) -> dict[str, Any]:
    """By model its published rates in percent, and `(instructions,)` of outcomes and characters of both."""
    with gzip.open(shared / "data" / "alpaca_eval" / "verdicts.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    return {
        name: (
            entry["published"], np.array(entry["preference"], dtype=np.float64) - 1,
            np.array(entry["model_characters"], dtype=np.float64),
            np.array(entry["reference_characters"], dtype=np.float64),
        )
        for name, entry in content.items()
    }  # fmt: skip


def test_published_rates_are_met_and_the_table_is_of_this_code(models: dict[str, Any]) -> None:
    here = [length_control(*arrays, resamples=0) for _, *arrays in models.values()]
    assert not any(found.unknown for found in here)
    rates = np.array([100 * (found.win_rate or 0.0) for found in here])
    published = np.array([rates["length_controlled_winrate"] for rates, *_ in models.values()])
    assert np.abs(rates - published).mean() <= 1.5
    assert spearmanr(rates, published).statistic >= 0.98
    written = json.loads(RESULTS.read_text())
    assert [entry["here"] for entry in written["each"].values()] == pytest.approx(rates.tolist(), abs=0.01)


def test_soft_verdicts_give_the_published_win_rate_and_its_error(models: dict[str, Any]) -> None:
    for name, (published, outcome, *_) in models.items():
        found = mean_outcome(outcome, resamples=400)
        assert 100 * found.win_rate == pytest.approx(published["win_rate"], abs=0.01), name
        low, high = found.ci95
        error = 100 * (high - low) / (2 * 1.96)
        assert error == pytest.approx(published["standard_error"], rel=0.2), name
        # So far from one half a normal test's p would be below this too.
        assert found.p_value < 1e-3 or abs(published["win_rate"] - 50) < 4 * published["standard_error"], name


def test_intervals_at_equal_lengths_cover_their_bootstrap_truth(models: dict[str, Any]) -> None:
    """All instructions are the population, 805 drawn of them with replacement the evaluation (a third of the models).

    All models, more samples and smaller ones: `benchmarks/length_control.py`.
    """
    rng = np.random.default_rng(0)
    covered = []
    for _, *arrays in list(models.values())[::3]:
        truth = length_control(*arrays, resamples=0).win_rate
        for seed in range(10):
            rows = rng.integers(len(arrays[0]), size=len(arrays[0]))
            found = length_control(*(array[rows] for array in arrays), resamples=200, seed=seed)
            assert found.ci95 is not None and truth is not None
            covered.append(found.ci95[0] <= truth <= found.ci95[1])
    assert 0.92 <= np.mean(covered) <= 0.99
