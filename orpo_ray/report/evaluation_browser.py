"""The responses that an evaluation's page carries along, for `templates/browser.js` to let a reader go through them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from markupsafe import Markup

from orpo_ray.report.evaluation_folder import Evaluation, Floats, Prompt

MAX_EMBEDDED = 8_000_000
"""Characters of prompts and responses, so that any evaluation gives a page that opens."""


def entries(evaluation: Evaluation, limit: int = MAX_EMBEDDED) -> list[dict[str, Any]]:
    """Prompts with every response to them; evenly spaced ones where all would take more than `limit` characters.

    `responses` is a list for each model of a response for each round, None where there is none; `rewards` is in the
    order of those who decide, None where not scored: of a judge that rates, the mean rating. `verdicts` are what judges
    said, a row each: judge, round and model by their places, the other model's (None: it rated one answer), the
    probability that the first is better or the rating, whether the first was shown first, words, turn.
    """
    responses = evaluation.responses
    models, rounds = list(evaluation.numbers.models), evaluation.numbers.rounds
    said = _said(evaluation)
    rewards = [*responses.rewards.values(), *(_mean_ratings(evaluation, judge) for judge in evaluation.numbers.judges)]
    keys = zip(responses.prompts.tolist(), responses.models.tolist(), responses.rounds.tolist(), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    several = {model for _, model, turn in row_of if turn > 0}
    once = set(models) - several  # answers from elsewhere, which stand in every round

    def response(prompt: Prompt, model: str, turn: int) -> dict[str, Any] | None:
        row = row_of.get((prompt.number, model, 0 if model in once else turn))
        if row is None:
            return None
        return {
            "text": responses.texts[row],
            "tokens": _finite(responses.tokens[row]),
            "ended": responses.ended[row],
            "rewards": [_finite(values[row]) for values in rewards],
        }

    every = [
        {
            "prompt": prompt.number,
            "text": prompt.text,
            "responses": [[response(prompt, model, turn) for turn in range(rounds)] for model in models],
            "verdicts": said.get(prompt.number, []),
            "data": [
                {"rewards": [None] * len(rewards), **(response(prompt, name, 0) or {}), "label": name, "text": text}
                for name, text in prompt.data.items()
            ],
        }
        for prompt in evaluation.prompts
    ]
    sizes = np.array([len(to_json(entry)) for entry in every])
    kept = np.arange(len(every))
    while len(kept) > 1 and sizes[kept].sum() > limit:
        fewer = min(len(kept) - 1, int(len(kept) * limit / sizes[kept].sum()))
        kept = np.linspace(0, len(every) - 1, max(1, fewer)).round().astype(np.int64)
    return [every[i] for i in kept]


def _said(evaluation: Evaluation) -> dict[int, list[list[Any]]]:
    """Rows of `verdicts` by prompt."""
    deciders, models = evaluation.numbers.deciders, list(evaluation.numbers.models)
    found: dict[int, list[list[Any]]] = {}
    for said in evaluation.verdicts:
        other = None if said.against is None else models.index(said.against)
        value = said.rating if other is None else said.probability
        place = [deciders.index(said.judge), said.round, models.index(said.model), other]
        found.setdefault(said.prompt, []).append([*place, value, said.shown_first, said.words, said.turn])
    return found


def _mean_ratings(evaluation: Evaluation, judge: str) -> Floats:
    """Of every response; NaN where it has no rating."""
    ratings: dict[tuple[int, str, int], list[float]] = {}
    for said in evaluation.verdicts:
        if said.judge == judge and said.rating is not None:
            ratings.setdefault((said.prompt, said.model, said.round), []).append(said.rating)
    responses = evaluation.responses
    keys = zip(responses.prompts.tolist(), responses.models.tolist(), responses.rounds.tolist(), strict=True)
    return np.array([np.mean(ratings[key]) if key in ratings else np.nan for key in keys], dtype=np.float64)


def to_json(value: Any) -> Markup:
    """JSON that may stand inside a `<script>` of a page, whatever text is in it.

    It is ASCII alone, so U+2028 and lone surrogates are escapes, and has no `<`, so that neither an end tag nor a
    comment begins in it.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
