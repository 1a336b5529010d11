"""The part of an evaluation's page on judges that judge in words: how far to trust them, and what they rated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from orpo_ray.report.evaluation_figures import colours, drawn, short
from orpo_ray.report.figures import INK, NEUTRAL, legend
from orpo_ray.report.judge_numbers import Judge, JudgedPair, MeanRating, Noise, Rated
from orpo_ray.report.numbers import number, percent

Row = dict[str, str]

LOWEST, HIGHEST = 1.0, 10.0
"""Of a rating."""
FIRST_PLACE, BOTH_ORDERS = "what the first place is worth", "same verdict in both orders"
JUDGED_AGAIN, MEAN_RATING = "judged again", "mean rating"
_COLUMNS = {
    "position_bias": FIRST_PLACE, "consistency": BOTH_ORDERS, "noise": JUDGED_AGAIN, "score": MEAN_RATING,
}  # fmt: skip
"""By the number that may be unknown."""
FEWEST_AXES = 3
"""Categories of fewer make no radar."""


def sections(judges: Mapping[str, Judge], models: list[str]) -> list[dict[str, Any]]:
    """One for each judge."""
    return [
        {
            "label": label,
            "described": [(name.replace("_", " "), _value(value)) for name, value in judge.described.items()],
            "counts": _counts(judge),
            "trust": [_trust(pair) for pair in judge.pairs],
            "unknown": _unknown(judge),
            "rated": [_rated(model, judge.rated[model]) for model in models if model in judge.rated],
            "radar": radar(judge, models, label),
        }
        for label, judge in judges.items()
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value in (None, "", {}) else str(value)


def _counts(judge: Judge) -> str:
    counts = judge.counts
    sentence = f"{number(counts.asked)} verdicts asked for, {number(counts.unreadable)} of them unreadable"
    sentence += f"; {number(counts.too_long)} had no room in its context" * bool(counts.too_long)
    sentence += f"; {number(counts.refused)} were refused by its server" * bool(counts.refused)
    sentence += f"; {number(counts.same)} pairs of answers are the same, a tie without asking" * bool(counts.same)
    return f"{sentence}; {number(counts.prompt_tokens)} tokens read and {number(counts.tokens)} written."


def _trust(pair: JudgedPair) -> Row:
    """How a judge stands to the place of an answer and to itself."""
    bias, consistency = pair.position_bias, pair.consistency
    return {
        "pair": f"{pair.model} and {pair.against}",
        FIRST_PLACE: _lacking(pair.unknown, "position_bias")
        if bias is None
        else f"{_signed(bias.bias)} points ({_signed(bias.ci95[0])} to {_signed(bias.ci95[1])})",
        "found from": "–" if bias is None else "both orders of each" if bias.both_orders else "one order of each",
        BOTH_ORDERS: _lacking(pair.unknown, "consistency")
        if consistency is None
        else f"{percent(consistency.consistent, 1)} of {number(consistency.comparisons)}",
        "asked, first model shown first": number(pair.asked[0]),
        "asked, shown second": number(pair.asked[1]),
        "unreadable": _of(sum(pair.unreadable), sum(pair.asked)),
        "not judged": number(sum(pair.unjudged)),
        "comparisons left out": number(pair.left_out),
        JUDGED_AGAIN: _lacking(pair.unknown, "noise") if pair.noise is None else _noise(pair.noise),
    }


def _rated(model: str, rated: Rated) -> Row:
    turns = {f"turn {turn}": _mean(mean) for turn, mean in enumerate(rated.turns, 1)} if len(rated.turns) > 1 else {}
    return {
        "model": model,
        MEAN_RATING: _lacking(rated.unknown, "score") if rated.score is None else _mean(rated.score),
        **turns,
        **{category: number(mean and mean.mean, 2) for category, mean in rated.categories.items()},
        "unreadable": _of(sum(rated.unreadable), sum(rated.asked)),
        "not judged": number(sum(rated.unjudged)),
        JUDGED_AGAIN: _lacking(rated.unknown, "noise") if rated.noise is None else _noise(rated.noise),
    }


def radar(judge: Judge, models: list[str], label: str) -> Markup | None:
    """The paper's Figure 10: mean ratings by category, an axis each. None for fewer than three categories."""
    if len(rated_categories(judge, models)) < FEWEST_AXES:
        return None

    def draw(axes: Axes) -> None:
        draw_radar(axes, judge, models)
        legend(axes)

    return drawn(draw, f"Mean ratings by category, by {label}, a line for each model", (5.6, 4.2))


def rated_categories(judge: Judge, models: list[str]) -> list[str]:
    """Those that any of `models` has a mean rating in, or might have; none where no rating could be read."""
    rated = [judge.rated[model].categories for model in models if model in judge.rated]
    if not any(mean for own in rated for mean in own.values()):
        return []
    return list(dict.fromkeys(name for found in rated for name in found))


def draw_radar(axes: Axes, judge: Judge, models: list[str]) -> None:
    """A line for each model, from 0 in the middle to 10; `models` says their colours too."""
    rated = {model: judge.rated[model].categories for model in models if model in judge.rated}
    names = rated_categories(judge, models)
    colour = colours(models)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    spokes = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (axes, 2)
    axes.set_aspect("equal")
    axes.axis("off")
    for level in range(2, int(HIGHEST) + 1, 2):
        ring = _closed(spokes * level)
        axes.plot(*ring.T, color=NEUTRAL, linewidth=0.5, alpha=0.6)
        if level < HIGHEST:
            axes.annotate(str(level), (0, level), (3, 1), textcoords="offset points", fontsize=7, color=NEUTRAL)
    for name, (x, y) in zip(names, spokes, strict=True):
        axes.plot([0, x * HIGHEST], [0, y * HIGHEST], color=NEUTRAL, linewidth=0.5, alpha=0.6)
        side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
        axes.annotate(
            short(name, 16), (x * (HIGHEST + 0.6), y * (HIGHEST + 0.6)), ha=side, va="center", fontsize=8, color=INK
        )
    for model, found in rated.items():
        means = [None if (mean := found.get(name)) is None else mean.mean for name in names]
        values = np.array([np.nan if mean is None else mean for mean in means])
        axes.plot(*_closed(spokes * values[:, None]).T, color=colour[model], marker="o", markersize=3,
                  label=short(model))  # fmt: skip
    axes.set_xlim(-HIGHEST - 6, HIGHEST + 6)
    axes.set_ylim(-HIGHEST - 1.5, HIGHEST + 1.5)


def _closed(points: Any) -> Any:
    return np.concatenate([points, points[:1]])


def _mean(found: MeanRating | None) -> str:
    return "–" if found is None else f"{found.mean:.2f} ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"


def _noise(noise: Noise) -> str:
    means = " and ".join(f"{mean:.3g}" for mean in noise.means)
    return f"{percent(noise.flips, 1)} flip" + (f"; {means}" if means else "")


def _lacking(unknown: Mapping[str, str], name: str) -> str:
    """In the place of a number that is not there; `_unknown` says why."""
    return "cannot be told" if name in unknown else "–"


def _unknown(judge: Judge) -> list[str]:
    """What cannot be told and why, a sentence for each reason, with whom it is of where it is not of all."""
    pairs = [(f"{pair.model} and {pair.against}", pair.unknown) for pair in judge.pairs]
    rated = [(model, found.unknown) for model, found in judge.rated.items()]
    sentences = []
    for every in (pairs, rated):
        for name, column in _COLUMNS.items():
            whose: dict[str, list[str]] = {}
            for who, unknown in every:
                if name in unknown:
                    whose.setdefault(unknown[name], []).append(who)
            for reason, theirs in whose.items():
                whom = "" if len(theirs) == len(every) else f" of {'; '.join(theirs)}"
                sentences.append(f"“{column.capitalize()}” cannot be told{whom}: {reason}.")
    return sentences


def _of(count: int, whole: int) -> str:
    return f"{number(count)} of {number(whole)}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
