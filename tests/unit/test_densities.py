"""The densities of rewards: as fine as what they are drawn of, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gaussian_kde, norm

from orpo_ray.report.densities import bandwidth, density

PLACES = np.linspace(-8, 8, 1601)


@pytest.mark.parametrize("count", [100, 500, 5000])
@pytest.mark.parametrize("apart", [1.5, 3.0])
def test_two_humps_stay_as_high_as_they_are(count: int, apart: float) -> None:
    rng = np.random.default_rng(count)
    values = np.r_[rng.normal(-apart, 0.5, count), rng.normal(apart, 0.5, count)]
    truth = (norm.pdf(PLACES, -apart, 0.5) + norm.pdf(PLACES, apart, 0.5)) / 2
    off = float(np.trapezoid(np.abs(density(values, PLACES) - truth), PLACES))
    melted = float(np.trapezoid(np.abs(gaussian_kde(values)(PLACES) - truth), PLACES))
    assert off < 0.7 * melted
    assert density(values, PLACES).max() > 0.85 * truth.max()


def test_one_hump_is_drawn_as_by_the_rule_that_is_made_for_it() -> None:
    values = np.random.default_rng(0).normal(2, 3, 2000)
    assert bandwidth(values) > 0.8 * values.std(ddof=1) * 2000**-0.2
    assert bandwidth(1e6 * values) == pytest.approx(1e6 * bandwidth(values))
    drawn = density(values, np.linspace(-15, 20, 500))
    assert np.trapezoid(drawn, np.linspace(-15, 20, 500)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "values", [[], [1.0], [2.0, 2.0, 2.0], [1.0, 1.0 + 2e-16], [0.0, 1e-300], [1e99, 1e99 * (1 + 1e-12)]]
)
def test_one_value_has_no_density(values: list[float]) -> None:
    assert np.isnan(density(np.array(values), PLACES)).all()


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0] * 50 + [1.0], [-1e99, 1e99, 0.0], list(range(30))])
def test_few_and_strange_values_have_one(values: list[float]) -> None:
    found = density(np.array(values, dtype=float), np.linspace(min(values), max(values), 50))
    assert np.isfinite(found).all() and found.max() > 0
