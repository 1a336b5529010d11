"""AlpacaEval 2's length-controlled win-rate, and what it is made of (Dubois et al., arXiv 2404.04475).

`P(model wins) = sigmoid(φ tanh(Δ / sd(Δ)) + γ d + θ)`: Δ = characters of the reference's output - of the model's, sd
with ddof 1, d = the difficulty of the instruction. The win-rate is the mean over instructions of `sigmoid(γ d + θ)`.
AlpacaEval fits a model's three weights to its own rows and to those of two gamed references (a verbose GPT-4 and a
concise one, at a weight of 0.1 each) by logistic regression with an L1 penalty, whose strength is chosen by five-fold
cross-validation.

What differs here: the minimum itself is found, where AlpacaEval stops liblinear at a tolerance of 1e-4; of models whose
verdicts are published that moves the win-rate by 0.01 points at most. Which rows make a fold is left there to the order
in which numpy sorts equal numbers; here row i is in fold i mod 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Row, number, records

Floats = NDArray[np.float64]

GAMED_WEIGHT = 0.1
"""Of a row of a gamed reference, of which there are two to an instruction; one of the model's own weighs 1."""
STRENGTHS = np.logspace(-4, 4, 10)
"""Of the data beside the penalty (scikit-learn's C); cross-validation chooses."""
FOLDS = 5
NAMES = {
    "phi": "np.tanh(std_delta_len)",
    "gamma": "instruction_difficulty",
    "theta": "not_gamed_baseline.astype(float)",
}
"""What AlpacaEval's files call the weights."""


_MOST = 1e6
"""Of weights, difficulties and lengths in units of their spread: all are of the size of 1."""


@dataclass(frozen=True)
class Weights:
    """Of one model."""

    phi: float
    """Of length."""
    gamma: float
    """Of difficulty."""
    theta: float

    def win_rate(self, difficulty: Floats) -> float:
        """At equal lengths, 0 to 1, over instructions of these difficulties `(instructions,)`."""
        return float(expit(self.gamma * difficulty + self.theta).mean())


@dataclass(frozen=True)
class Rows:
    """Comparisons to fit: arrays `(rows,)`."""

    slope: Floats
    """tanh(Δ / sd(Δ))."""
    difficulty: Floats
    outcome: Floats
    """1 where the model wins, 0 where the reference does, and between."""


@dataclass(frozen=True)
class Difficulty:
    """What AlpacaEval knows of its instructions."""

    instructions: tuple[str, ...]
    """In the benchmark's own order."""
    values: Floats
    """`(instructions,)`."""
    gamed: Rows | None
    """Of the two gamed references; None where the file has none."""
    path: Path

    def of(self, instructions: Sequence[str]) -> Floats:
        """`(rows,)`. Raises `UserError` where one is not among them."""
        known = dict(zip(self.instructions, self.values.tolist(), strict=True))
        if unknown := [each for each in instructions if each not in known]:
            raise UserError(
                f"{self.path}: has no difficulty of {len(unknown)} of {len(instructions)} instructions, "
                f"such as {unknown[0]!r:.80}"
            )
        return np.array([known[each] for each in instructions])


def slope(reference_characters: Floats, model_characters: Floats) -> Floats:
    """`tanh(Δ / sd(Δ))`, `(rows,)`; 0 where all rows have one difference, since it says nothing then."""
    difference = reference_characters - model_characters
    if len(difference) < 2 or np.ptp(difference) == 0:
        return np.zeros_like(difference)
    return np.asarray(np.tanh(difference / difference.std(ddof=1)))


def fit(own: Rows, gamed: Rows | None) -> Weights | None:
    """A model's weights. Without gamed rows they are not AlpacaEval's, whose penalty and folds are kept.

    None where there are fewer rows than folds.
    """
    if len(own.outcome) < FOLDS:
        return None
    parts = [own] if gamed is None else [gamed, own]
    x = np.concatenate([
        np.stack([part.slope, part.difficulty, np.full(len(part.slope), float(part is own))], axis=1) for part in parts
    ])  # fmt: skip
    won = np.concatenate([part.outcome for part in parts])
    weights = np.concatenate([np.full(len(part.outcome), 1.0 if part is own else GAMED_WEIGHT) for part in parts])
    fold = np.arange(len(won)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held_out in range(FOLDS):
        seen, rest = fold != held_out, fold == held_out
        for i, strength in enumerate(STRENGTHS):
            logits = (x[rest] * _minimum(x[seen], won[seen], weights[seen], strength)).sum(axis=1)
            losses[i] += (weights[rest] * (np.logaddexp(0, logits) - won[rest] * logits)).mean()
    phi, gamma, theta = _minimum(x, won, weights, STRENGTHS[losses.argmin()])
    return Weights(float(phi), float(gamma), float(theta))


def _minimum(x: Floats, won: Floats, weights: Floats, strength: float) -> Floats:
    """Coefficients `(features,)` of the least `Σ weights (-log-likelihood) + |coefficients| / strength`, to 1e-10.

    By steps to the minimum of the penalised second-order expansion (Yuan et al. 2012, JMLR 13:1999), as liblinear goes,
    but to the end. No BLAS: its threads wait for each other far longer than so few rows take.
    """

    def loss(at: Floats) -> float:
        logits = (x * at).sum(axis=1)
        likelihood = (weights * (np.logaddexp(0, logits) - won * logits)).sum()
        return float(likelihood + np.abs(at).sum() / strength)

    at = np.zeros(x.shape[1])
    now = loss(at)
    for _ in range(200):
        chance = expit((x * at).sum(axis=1))
        gradient = (x * (weights * (chance - won))[:, None]).sum(axis=0)
        curvature = np.einsum("ri,rj,r->ij", x, x, weights * chance * (1 - chance)) + 1e-9 * np.eye(len(at))
        step = _penalised(curvature, gradient, at, 1 / strength) - at
        # Shortened where the expansion is too far from the loss; what rounding makes of the loss stops nothing.
        while (then := loss(at + step)) > now + 1e-9 * abs(now) and np.abs(step).max() > 1e-10:
            step = step / 2
        at, now = at + step, then
        if np.abs(step).max() < 1e-10:
            break
    return at


def _penalised(curvature: Floats, gradient: Floats, at: Floats, penalty: float) -> Floats:
    """The least of `gradient · d + d · curvature d / 2 + penalty |at + d|`, as `at + d`: a coordinate after another."""
    square, slope, start = curvature.tolist(), gradient.tolist(), at.tolist()
    found = list(start)
    for _ in range(1000):
        most = 0.0
        for i, row in enumerate(square):
            pull = slope[i] + sum(c * (f - s) for c, f, s in zip(row, found, start, strict=True)) - row[i] * found[i]
            new = -math.copysign(max(abs(pull) - penalty, 0.0), pull) / row[i]
            most, found[i] = max(most, abs(new - found[i])), new
        if most < 1e-12:
            break
    return np.array(found)


def read_difficulty(path: Path, instructions: Sequence[str] | None) -> Difficulty:
    """Of records `{instruction, difficulty}`, or of AlpacaEval's own `instruction_difficulty.csv` or `df_gamed.csv`.

    Its own files number the instructions, from 0: these are `instructions`, in the benchmark's order. The second has
    the gamed rows as well. Raises `UserError`, naming the record.
    """
    texts: list[str] = []
    values: list[float] = []
    gamed: list[tuple[float, float, float]] = []
    is_gamed = False
    for location, row in records(path):
        try:
            text, value = _instruction_of(row, instructions), _difficulty_of(row)
            if "std_delta_len" in row:
                is_gamed = True
                length, outcome = _needed(row, "std_delta_len"), number(row, "preference")
                if outcome is not None and not 0 <= outcome <= 1:
                    raise ValueError(f"preference should be from 0 to 1 in a gamed row, and is {outcome:g}")
                if outcome is not None:  # AlpacaEval leaves out what its judge did not tell, too
                    gamed.append((length, value, outcome))
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
        texts.append(text)
        values.append(value)
    known = dict(zip(texts, values, strict=True))
    if differs := next((text for text, value in zip(texts, values, strict=True) if known[text] != value), None):
        raise UserError(f"{path}: has two difficulties of the instruction {differs!r:.80}")
    if len(known) < len(texts) and not is_gamed:
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"{path}: has the instruction {twice!r:.80} twice")
    rows = None
    if gamed:
        lengths, difficulty, won = np.array(gamed).T
        rows = Rows(np.tanh(lengths), difficulty, won)
    return Difficulty(tuple(known), np.array(list(known.values())), rows, path)


def read_weights(path: Path) -> dict[str, Weights]:
    """By model, of records under AlpacaEval's own names of weights: a model is under `model` or in the first, nameless
    column of its CSV files. Raises `UserError`, naming the record."""
    found: dict[str, Weights] = {}
    for location, row in records(path):
        try:
            model = row.get("model", row.get("", row.get("Unnamed: 0")))
            if not isinstance(model, str) or not model:
                raise ValueError("names no model")
            weights = Weights(**{name: _needed(row, column) for name, column in NAMES.items()})
            if found.setdefault(model, weights) != weights:
                raise ValueError(f"has other weights of {model} than a record before")
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
    return found


def _needed(row: Row, key: str) -> float:
    value = number(row, key)
    if value is None:
        raise ValueError(f"has no {key}")
    if abs(value) > _MOST:
        raise ValueError(f"{key} should be near 1, and is {value:g}")
    return value


def _difficulty_of(row: Row) -> float:
    return _needed(row, "difficulty" if "difficulty" in row else "instruction_difficulty")


def _instruction_of(row: Row, instructions: Sequence[str] | None) -> str:
    text = row.get("instruction")
    if isinstance(text, str):
        return text
    index = number(row, "index" if "index" in row else "")
    if index is None:
        raise ValueError("has no instruction, and no index of one")
    if instructions is None:
        raise ValueError("numbers its instruction; give the benchmark's instructions by --prompts")
    if index not in range(len(instructions)):
        raise ValueError(f"is of instruction {index:g}, and there are {len(instructions)}")
    return instructions[int(index)]
