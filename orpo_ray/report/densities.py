"""How finely the densities of rewards are drawn: one way for every figure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import brentq
from scipy.stats import gaussian_kde

Floats = NDArray[np.float64]
_CELLS = 1024
_STAGES = range(6, 1, -1)
_FINEST = 0.25
"""Of Scott's bandwidth: values that repeat, as rounded ones do, would be drawn as a spike each."""
_LEAST = 1e-9
"""Of the largest value: what lies closer is one value, and rounding."""


def bins(count: int) -> int:
    """Of a histogram of this many values beside their density."""
    return int(np.clip(1.5 * np.sqrt(count), 8, 40))


def density(values: Floats, x: Floats) -> Floats:
    """Of `values (n,)` at the places `x`, by normal kernels; `x * NaN` where they are all one value."""
    if values.size < 2 or float(np.ptp(values)) <= max(_LEAST * float(np.abs(values).max()), 1e-100):
        return x * np.nan
    drawn: Floats = gaussian_kde(values, bandwidth(values) / float(values.std(ddof=1)))(x)
    return drawn


def bandwidth(values: Floats) -> float:
    """The standard deviation of a kernel, in the unit of `values (n,)`, which are not all one value.

    By the diffusion rule of Botev, Grotowski and Kroese (2010, arXiv 1011.2602), which takes no shape for granted.
    Scott's rule, which is made for one normal hump and melts two into one, bounds it above.
    """
    scott: float = float(values.std(ddof=1)) * float(values.size) ** -0.2
    span: float = 1.2 * float(np.ptp(values))
    low = float(values.min()) - span / 12
    counts = np.histogram(values, _CELLS, (low, low + span))[0]
    squared = (dct(counts / values.size)[1:] / 2) ** 2
    frequencies: Floats = np.arange(1, _CELLS, dtype=np.float64) ** 2
    count = np.unique(values).size

    def beyond(time: float) -> float:
        """How far `time`, the squared bandwidth as a share of the span, is above the one that it asks for."""
        roughness = _roughness(7, time, frequencies, squared)
        for order in _STAGES:
            odd = float(np.prod(np.arange(1, 2 * order, 2))) / np.sqrt(2 * np.pi)
            asked = 2 * odd * (1 + 0.5 ** (order + 0.5)) / (3 * count * roughness)
            roughness = _roughness(order, asked ** (2 / (3 + 2 * order)), frequencies, squared)
        return time - float((2.0 * count * np.sqrt(np.pi) * roughness) ** -0.4)

    widest = (scott / span) ** 2
    with np.errstate(all="ignore"):
        ends = beyond(widest * _FINEST**2), beyond(widest)
        if not np.isfinite(ends).all() or ends[1] <= 0:
            return scott
        if ends[0] >= 0:
            return _FINEST * scott
        return float(np.sqrt(brentq(beyond, widest * _FINEST**2, widest))) * span


def _roughness(order: int, time: float, frequencies: Floats, squared: Floats) -> float:
    """The integral of the squared derivative of this order of the density, smoothed by `time`."""
    terms = frequencies**order * squared * np.exp(-frequencies * np.pi**2 * time)
    return float(2 * np.pi ** (2 * order) * terms.sum())
