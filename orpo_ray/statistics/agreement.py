"""Whether two reward models would tell the same story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from statsmodels.stats.inter_rater import cohens_kappa

from orpo_ray.statistics.winrate import TIE, checked_outcomes, outcomes

Floats = NDArray[np.float64]
Pair = tuple[str, str]

_VERDICTS = (0.0, 0.5, 1.0)
"""For the second model, a tie, for the first."""


@dataclass(frozen=True)
class Agreement:
    agree: float
    """The share of comparisons with the same verdict, a tie beside a winner counting half."""
    kappa: float
    """Cohen's, linearly weighted: `agree` beyond what two judges with the same habits would reach by chance, 1 at
    best."""
    spearman: float | None
    """Rank correlation of the rewards themselves, over all responses that both have scored; None without rewards."""
    comparisons: int
    """Two responses to one prompt of which both have a verdict, ties included."""
    ties: tuple[int, int]
    """Comparisons that each of the two calls a tie."""


def agreement(
    scores_a: Mapping[str, NDArray[np.float64]], scores_b: Mapping[str, NDArray[np.float64]], *, tie: float = TIE
) -> Agreement | None:
    """How far reward models a and b agree on which of two models' responses is the better one.

    `scores_a` and `scores_b` hold `(prompts, rounds)` of each model, NaN where there is no score; models that only
    one of them has are left out. A comparison is two models, a prompt and a round. None where there is none. Raises
    `ValueError` for unequal shapes and infinite scores. Spearman's is 0 where one gives all responses the same reward.
    """
    models = sorted(scores_a.keys() & scores_b.keys())
    for model in models:
        if np.shape(scores_a[model]) != np.shape(scores_b[model]):
            raise ValueError(f"the two reward models' scores of {model} differ in shape")
    pairs = list(combinations(models, 2))
    verdicts = [{(i, j): outcomes(scores[i], scores[j], tie=tie) for i, j in pairs} for scores in (scores_a, scores_b)]
    rewards = [np.concatenate([np.zeros(0), *(np.ravel(scores[m]) for m in models)]) for scores in (scores_a, scores_b)]
    return agreement_of_outcomes(*verdicts, spearman=_spearman(*rewards))


def agreement_of_outcomes(
    outcomes_a: Mapping[Pair, Floats], outcomes_b: Mapping[Pair, Floats], *, spearman: float | None = None
) -> Agreement | None:
    """The same from outcomes of pairs of models, such as a judge's probabilities; a verdict is the side of one half.

    Which of two models is named first is arbitrary, and with more than two kappa would depend on it. So the first is
    the one with more wins from a and b together (by name where these are equal): chance is then two judges that know
    how often the better model of each two tends to win and nothing of the responses. Where a judge always gives the
    same verdict kappa is 0 (the formula's own value, except that it is 0/0 where both do): such a judge shows no
    agreement beyond chance. None where there is no comparison. Raises `ValueError` for unequal shapes and for
    outcomes not from 0 to 1.
    """
    by_name_a, by_name_b = _by_name(outcomes_a), _by_name(outcomes_b)
    table = np.zeros((3, 3))  # a's verdicts, and b's
    for pair in sorted(by_name_a.keys() & by_name_b.keys()):
        a, b = (np.sign(given[pair] - 0.5) / 2 + 0.5 for given in (by_name_a, by_name_b))
        if a.shape != b.shape:
            raise ValueError(f"the two judges' outcomes of {pair[0]} and {pair[1]} differ in shape")
        verdicts = np.array([[((a == i) & (b == j)).sum() for j in _VERDICTS] for i in _VERDICTS])
        sides = verdicts.sum(axis=0) + verdicts.sum(axis=1)
        table += verdicts if sides[2] >= sides[0] else verdicts[::-1, ::-1]
    comparisons = int(table.sum())
    if not comparisons:
        return None
    constant = any((table.sum(axis=axis) > 0).sum() == 1 for axis in (0, 1))
    apart = np.abs(np.subtract.outer(_VERDICTS, _VERDICTS))
    return Agreement(
        agree=float(1 - (table * apart).sum() / comparisons),
        kappa=0.0 if constant else float(cohens_kappa(table, wt="linear").kappa),
        spearman=spearman,
        comparisons=comparisons,
        ties=(int(table[1].sum()), int(table[:, 1].sum())),
    )


def _by_name(outcomes: Mapping[Pair, Floats]) -> dict[Pair, Floats]:
    """Every pair in the order of its names, whichever of the two was the first."""
    return {
        (min(pair), max(pair)): checked_outcomes(won if pair[0] <= pair[1] else 1 - won)
        for pair, won in outcomes.items()
    }


def _spearman(a: Floats, b: Floats) -> float:
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    return 0.0 if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
