"""From what a judge said to a verdict. What cannot be read is None, and never a guess."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from orpo_ray.judging.asking import Asked
from orpo_ray.leaderboards import alpaca_eval
from orpo_ray.leaderboards.mt_bench import rating

TOP_TOKENS = 20
"""Likeliest first tokens among which labels are looked for: as many as OpenAI's and vLLM's servers give."""

_MARK = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_PROBABILITY = {"A": 1.0, "B": 0.0, "C": 0.5}
_RANK = re.compile(r"""["']model["']\s*:\s*["']model_([12])["']\s*,\s*["']rank["']\s*:\s*["']?(\d+)""")
_THOUGHTS_END = "</think>"
_NOTHING = -9999.0
"""What servers write for a log-prob of minus infinity."""


def read(asked: Asked, words: str, likely: Iterable[tuple[str, float]] = ()) -> tuple[float | None, float | None]:
    """Probability and rating (see `Verdict`) of an answer; both None where it is unreadable.

    `likely`: texts and log-probs of the likeliest first tokens, where labels are read.
    """
    if asked.reads == "labels":
        assert asked.labels is not None
        return label_probability(asked.labels, likely), None
    said = _behind_thoughts(words)
    return (preference(said), None) if asked.reads == "preference" else (None, rating(said))


def label_probability(labels: tuple[str, str], likely: Iterable[tuple[str, float]]) -> float | None:
    """P(first label) / (P(first) + P(second)), as AlpacaEval 2 has it: a label that is not among the likeliest tokens
    counts nothing. None where neither is. A tokenizer may have a label with a space before it, too: they add up."""
    first, second = (label.strip() for label in labels)
    found: dict[str, float] = {}
    for token, logp in likely:
        if (text := token.strip()) in (first, second) and logp > _NOTHING:
            found[text] = float(np.logaddexp(found.get(text, -math.inf), min(logp, 0.0)))
    probability = alpaca_eval.label_probability(found, (first, second))
    return None if math.isnan(probability) else probability


def preference(said: str) -> float | None:
    """That the answer shown first is better, by the last `[[A]]`, `[[B]]` or `[[C]]` (a tie), or by ranks of `model_1`
    and `model_2`, as AlpacaEval 1 asks for."""
    if marks := _MARK.findall(said):
        return _PROBABILITY[marks[-1]]
    ranks = {model: int(rank) for model, rank in _RANK.findall(said)}
    if ranks.keys() != {"1", "2"} or {*ranks.values()} != {1, 2}:
        return None
    return float(ranks["1"] < ranks["2"])


def _behind_thoughts(words: str) -> str:
    """Without what a judge thought aloud; nothing, where it did not come to an end of that."""
    if _THOUGHTS_END in words:
        return words.rpartition(_THOUGHTS_END)[2]
    return "" if words.lstrip().startswith("<think>") else words
