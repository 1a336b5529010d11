"""How much a model's responses differ from one another, how much they repeat themselves, and how long they are.

A *word* is what whitespace separates, in lower case; an n-gram is n words in a row of one response. That suits
languages which write spaces between words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

SELF_BLEU_PROMPTS = 200
"""BLEU is slow, so its mean is taken over at most so many prompts, drawn by `SELF_BLEU_SEED`."""
SELF_BLEU_SEED = 0
REPETITION_ORDER = 4


@dataclass(frozen=True)
class Diversity:
    """Of one model's responses. Cosines and self-BLEU: lower is more diverse; distinct-n: higher is."""

    per_input_cosine: float | None
    """Mean over prompts of the mean pairwise cosine of a prompt's rounds, as in the paper's Table 4 (the division by
    4 in its Eq. 13 is an erratum). None without an embedder or a prompt with two responses."""
    across_input_cosine: float | None
    """Mean pairwise cosine of the first-round responses to different prompts (Table 4). None without an embedder or
    two such responses."""
    distinct_1: float
    """Different words / words, of all responses together (Li et al. 2016); 0 where there is none. It falls as text
    grows, so compare models on like amounts of text only."""
    distinct_2: float
    """The same of 2-grams."""
    self_bleu: float | None
    """Mean BLEU-4, 0 to 1, of a response against the other responses to its prompt (Zhu et al. 2018). None where no
    prompt has two responses with a word."""
    repetition: float
    """Mean over responses of 1 - different 4-grams / 4-grams (seq-rep-4, Welleck et al. 2020)."""


@dataclass(frozen=True)
class Lengths:
    """Of responses, in tokens."""

    mean: float
    p10: float
    median: float
    p90: float
    max: int


def diversity(
    responses: Sequence[Sequence[str | None]], embed: Callable[[Sequence[str]], NDArray[np.floating]] | None
) -> Diversity:
    """Of `responses`, `(prompts, rounds)`, where None was not generated and is left out of every measure.

    `embed` gives a vector for each of the texts, as `SentenceEmbedder` does; it is called once, with no text twice.
    """
    given = [[text for text in row if text is not None] for row in responses]
    firsts = [row[0] for row in responses if row and row[0] is not None]
    per_input, across_input = _cosines(given, firsts, embed) if embed and any(given) else (None, None)
    words = [[text.lower().split() for text in row] for row in given]
    flat = [response for row in words for response in row]
    return Diversity(
        per_input_cosine=per_input,
        across_input_cosine=across_input,
        distinct_1=_distinct(flat, 1),
        distinct_2=_distinct(flat, 2),
        self_bleu=_self_bleu(words),
        repetition=float(np.mean([_repetition(response) for response in flat])) if flat else 0.0,
    )


def lengths(tokens: NDArray[np.floating]) -> Lengths | None:
    """Of token counts in any shape, NaN where there is no response. Percentiles interpolate linearly. None where
    there is no count."""
    counts = tokens[~np.isnan(tokens)]
    if counts.size == 0:
        return None
    p10, median, p90 = np.percentile(counts, (10, 50, 90))
    return Lengths(float(counts.mean()), float(p10), float(median), float(p90), int(counts.max()))


def mean_pairwise_cosine(vectors: NDArray[np.floating]) -> float:
    """Of the n(n-1)/2 pairs of `vectors`, `(n >= 2, width)`, without the n x n matrix: for unit vectors u,
    `(|sum u|^2 - sum |u|^2) / (n (n-1))`. A zero vector has cosine 0 to all."""
    exact = vectors.astype(np.float64)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    total = unit.sum(axis=0)
    n = len(unit)
    return float(((total**2).sum() - (unit**2).sum()) / (n * (n - 1)))


def _cosines(
    given: list[list[str]], firsts: list[str], embed: Callable[[Sequence[str]], NDArray[np.floating]]
) -> tuple[float | None, float | None]:
    """Per input and across inputs."""
    # Equal texts share one vector: less work, and a cosine of exactly 1 whatever batch each would have been in.
    index = {text: position for position, text in enumerate(dict.fromkeys(text for row in given for text in row))}
    vectors = embed(list(index))
    rows = [mean_pairwise_cosine(vectors[[index[text] for text in row]]) for row in given if len(row) > 1]
    across = mean_pairwise_cosine(vectors[[index[text] for text in firsts]]) if len(firsts) > 1 else None
    return float(np.mean(rows)) if rows else None, across


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(responses: list[list[str]], n: int) -> float:
    ngrams = [ngram for words in responses for ngram in _ngrams(words, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _repetition(words: list[str]) -> float:
    ngrams = _ngrams(words, REPETITION_ORDER)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _self_bleu(responses: list[list[list[str]]]) -> float | None:
    # Smoothing is Texygen's: 0.1 in place of a count of 0 (method 1 of Chen & Cherry 2014). A response shorter than
    # 4 words is compared by the orders that it has, and one without a word by nothing, so it is left out.
    bleu = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    worded = [[" ".join(words) for words in row if words] for row in responses]
    # One order of prompts for every model: models that answered the same prompts are compared on the same draw.
    order = np.random.default_rng(SELF_BLEU_SEED).permutation(len(worded))
    drawn = [worded[prompt] for prompt in order if len(worded[prompt]) > 1][:SELF_BLEU_PROMPTS]
    scores = [
        bleu.sentence_score(text, row[:round_] + row[round_ + 1 :]).score / 100
        for row in drawn
        for round_, text in enumerate(row)
    ]
    return float(np.mean(scores)) if scores else None
