"""The test of an even win-rate, for whole outcomes and for those between, such as a judge's probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

Floats = NDArray[np.float64]

_ENUMERATED = 14
"""Prompts, at most, of which all sign flips are gone through where their outcomes are soft."""


def sign_flip_test(excess: Floats) -> float:
    """Two-sided sign-flip test (Fisher 1935; Pitman 1937): how likely is a sum of `excess` this far from zero?

    `excess (prompts,)` is what A has over an even outcome, summed over a prompt's rounds: Σ (2 outcome - 1). Under the
    null, swapping the two models' names in any prompt, its rounds together, is as likely as not, so each sign is.
    The sum is what the win-rate is made of; prompts without excess drop out.

    Exact where all excesses are whole (wins - losses). With one round that is the sign test. Soft outcomes are exact up
    to 14 prompts and by a saddlepoint beyond. Neither has a seed, or a smallest value of 1 / resamples, which Holm's
    adjustment would multiply.
    """
    sizes = np.abs(excess)
    whole = np.rint(excess)
    if np.allclose(excess, whole, rtol=0, atol=1e-9):
        return _by_convolution(whole.astype(np.int64))
    sizes = sizes[sizes > 1e-9]
    seen = abs(float(excess.sum()))
    chance = _by_enumeration(sizes, seen) if len(sizes) <= _ENUMERATED else _by_saddlepoint(sizes, seen)
    return min(1.0, 2 * chance)


def _by_convolution(excess: NDArray[np.int64]) -> float:
    """Prompts of equal size form a binomial, so the whole distribution is a convolution of a few of these.

    `scipy.stats.permutation_test` is exact up to about 13 prompts and draws beyond.
    """
    sizes, prompts = np.unique(np.abs(excess[excess != 0]), return_counts=True)
    chance: Floats = np.ones(1)  # of each sum of the sizes that have a positive sign, from 0 to their total
    for size, n in zip(sizes, prompts, strict=True):
        spread = np.zeros(size * n + 1)
        spread[::size] = binom.pmf(np.arange(n + 1), n, 0.5)
        chance = np.convolve(chance, spread).astype(np.float64)
    total, seen = int(np.abs(excess).sum()), abs(int(excess.sum()))
    return min(1.0, 2 * float(chance[(total + seen) // 2 :].sum()))


def _by_enumeration(sizes: Floats, seen: float) -> float:
    """P(sum >= seen), every pattern of signs counted."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return float((sums >= seen - 1e-9).mean())


def _by_saddlepoint(sizes: Floats, seen: float) -> float:
    """P(sum >= seen) by Lugannani & Rice (1980, Adv. Appl. Prob. 12:475), as Robinson (1982, JRSS B 44:91) uses it.

    The cumulant generating function of random signs times sizes is K(t) = Σ log cosh(t size). Unlike a normal
    approximation it stays right, relative to itself, however small the probability is.
    """
    total = float(sizes.sum())
    fewest = -len(sizes) * np.log(2)  # log of the chance of one pattern of signs: nothing is less likely
    if seen >= total * (1 - 1e-9):
        return float(np.exp(fewest))
    if seen <= 1e-6 * float(np.sqrt((sizes**2).sum())):
        return 0.5

    def slope(t: float) -> float:
        return float((sizes * np.tanh(t * sizes)).sum()) - seen

    far = 1.0 / float(sizes.max())
    while slope(far) < 0:
        far *= 2
    t = float(brentq(slope, 0.0, far, xtol=1e-14 * far, rtol=1e-12))
    cosh = np.logaddexp(t * sizes, -t * sizes) - np.log(2)  # log cosh, without overflow
    signed = np.sqrt(2 * (t * seen - float(cosh.sum())))
    scaled = t * np.sqrt(float((sizes**2 * np.exp(-2 * cosh)).sum()))
    tail = norm.sf(signed) + norm.pdf(signed) * (1 / scaled - 1 / signed)
    return float(np.clip(tail, np.exp(fewest), 0.5))
