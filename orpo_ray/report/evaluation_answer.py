"""The top of an evaluation's page: judge by judge the ranking and who is told apart, and what ORPO has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from orpo_ray.config import read_yaml
from orpo_ray.errors import UserError
from orpo_ray.report.evaluation_folder import Numbers, Pair
from orpo_ray.report.evaluation_tables import deviation
from orpo_ray.report.evaluation_words import at_equal_lengths, probability, rate, verdict
from orpo_ray.report.numbers import percent

ORPO = "orpo"
_MOST_NAMED = 3
"""Pairs; more of them are counted."""


@dataclass(frozen=True)
class Place:
    model: str
    sign: str
    """Before it: `>` behind a model that it is told apart from, `≈` behind one that it is not; empty for the first."""
    meaning: str
    """Of the sign."""


@dataclass(frozen=True)
class Ranking:
    """The models by one judge's ratings, best first."""

    judge: str
    places: list[Place]
    told: str
    """Who is told apart, all pairs counted, and what is left of that at equal lengths."""


def rankings(numbers: Numbers) -> list[Ranking]:
    """One for each judge that has ratings."""
    found = []
    for judge in numbers.deciders:
        models = [entry.model for entry in numbers.ratings.get(judge, [])]
        pairs = [p for a, b in combinations(models, 2) if (p := numbers.pair(a, b, judge))]
        if pairs:
            found.append(Ranking(judge, _places(numbers, judge, models), _told(pairs)))
    return found


def _places(numbers: Numbers, judge: str, models: list[str]) -> list[Place]:
    places = [Place(models[0], "", "")]
    for model, behind in pairwise(models):
        pair = numbers.pair(model, behind, judge)
        if pair is None:
            places.append(Place(behind, "·", "not compared"))
        elif not pair.told_apart:
            places.append(Place(behind, "≈", "not told apart"))
        else:
            places.append(
                Place(behind, *((">", "told apart") if pair.win_rate > 0.5 else ("<", "told apart, but less")))
            )
    return places


def _told(pairs: list[Pair]) -> str:
    apart, even = [p for p in pairs if p.told_apart], [p for p in pairs if not p.told_apart]
    if not even:
        said = "told apart" if len(pairs) == 1 else "all told apart"
    elif not apart:
        said = "not told apart" if len(pairs) == 1 else "none told apart"
    elif len(even) <= min(len(apart), _MOST_NAMED):
        said = f"all told apart but {_listed(f'{p.model} and {p.against}' for p in even)}"
    elif len(apart) <= _MOST_NAMED:
        said = f"told apart: {_listed(map(_over, apart))} alone"
    else:
        said = f"{len(apart)} of {len(pairs)} pairs told apart"
    lost = [p for p in apart if p.length_controlled is not None and not _holds_at_equal_lengths(p)]
    if lost:
        named = _listed(map(_over, lost)) if len(lost) <= _MOST_NAMED else f"{len(lost)} of them"
        said += "; at equal lengths not so" if len(pairs) == 1 else f"; at equal lengths not so: {named}"
    return said


def _holds_at_equal_lengths(pair: Pair) -> bool:
    if pair.length_controlled_ci95 is None:
        return False
    low, high = pair.length_controlled_ci95
    return low > 0.5 if pair.win_rate > 0.5 else high < 0.5


def _over(pair: Pair) -> str:
    """Whoever wins is named first."""
    first, second = (pair.model, pair.against) if pair.win_rate > 0.5 else (pair.against, pair.model)
    return f"{first} over {second}"


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names)


def trained_by_orpo(numbers: Numbers) -> list[str]:
    """The models that are called ORPO, or whose run's configuration is there and says that they were trained by it."""
    return [
        label for label, model in numbers.models.items()
        if re.search(r"(?<![a-z])orpo(?![a-z])", label.lower()) or (model.was_asked and _objective(model.path) == ORPO)
    ]  # fmt: skip


def _objective(path: str) -> str:
    """Of the run that a model's folder is of; empty where none is there."""
    for folder in (Path(path), Path(path).parent):
        try:
            if (folder / "config.yaml").is_file():
                section = read_yaml(folder / "config.yaml").get("objective")
                return str(section.get("name", "")) if isinstance(section, dict) else ""
        except (UserError, OSError, ValueError):  # what is there now need not be what was there then
            continue
    return ""


def comparisons(numbers: Numbers, models: list[str]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Each of `models` over each other one: who over whom, and a cell for each judge, None where it compared none."""
    rows = []
    for model in models:
        for against in numbers.models:
            if against in models:
                continue
            pairs = [numbers.pair(model, against, judge) for judge in numbers.deciders]
            if any(pairs):
                rows.append((f"{model} over {against}", [cell(pair) for pair in pairs]))
    return rows


def cell(pair: Pair | None) -> dict[str, Any] | None:
    """A cell of a matrix. `strength` is the opacity of its colour: at its strongest the text still reads well."""
    if pair is None:
        return None
    distance = pair.win_rate - 0.5
    low, high = pair.ci95
    even = pair.length_controlled
    return {
        "rate": percent(pair.win_rate, 1),
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "side": "above" if distance > 0 else "below",
        "strength": f"{min(1.0, abs(distance) / 0.3) * 0.55:.3f}",
        "told_apart": pair.told_apart,
        "even": f"{100 * even:.1f} at equal lengths" if even is not None and (even - 0.5) * distance < 0 else None,
        "controlled": at_equal_lengths(pair),
        "title": f"{pair.model} over {pair.against}: {rate(pair)}; sd over rounds {deviation(pair)}; "
        f"p {probability(pair.p_value)}, by Holm {probability(pair.p_holm)}; {verdict(pair)}",
    }
