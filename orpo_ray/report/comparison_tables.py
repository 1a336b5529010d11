"""The tables of a page of several runs: rows of text, each cell under its column's heading."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import yaml

from orpo_ray.config.identity import differing
from orpo_ray.config.metrics import spoken_name
from orpo_ray.report import comparison as runs_alike
from orpo_ray.report.comparison import Compared, parted, unit_of
from orpo_ray.report.comparison_scores import Contrast, Scores, Summary, contrast, summary
from orpo_ray.report.evaluation_words import probability
from orpo_ray.report.numbers import number, percent, time_taken
from orpo_ray.report.page import EVALUATION_COLUMNS, TITLES, pace, planned
from orpo_ray.report.rollout_words import columns_of_rollouts
from orpo_ray.report.runs import Run
from orpo_ray.statistics.paired import Mean
from orpo_ray.statistics.winrate import holm
from orpo_ray.storage.driver_lock import has_driver

Row = dict[str, str]
_LONGEST = 200  # characters of a setting
_ALL_PAIRS = 8
"""Runs with scores of which each is compared with each; of more, each with the first."""
_SIGNIFICANT = 0.05


def settings(runs: Sequence[Compared]) -> list[Row]:
    """A row for each setting in which any two differ, a column for each run."""
    found = differing([each.run.config for each in runs])
    labels = [each.label for each in runs]
    return [
        {"setting": key, **{label: _setting(value) for label, value in zip(labels, values, strict=True)}}
        for key, values in found.items()
    ]


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**30).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def standings(runs: Sequence[Compared]) -> list[Row]:
    """Where each run stands, how fast it is, and its best evaluation."""
    return [_standing(each) for each in runs]


def _standing(compared: Compared) -> Row:
    run = compared.run
    name, best = runs_alike.objective_of(run), run.best_step
    value = run.value_at(run.keep_by, best)
    summary_of = run.summary or {}
    rate = pace(run)
    return {
        "run": compared.label,
        "objective": TITLES.get(name, name),
        "state": _state(run),
        "step": " ".join(filter(None, [number(run.last_step), planned(run)])),
        "best": "–" if value is None else f"{spoken_name(run.keep_by)} {number(value)} at step {number(best)}",
        "kept step": number(run.kept_step),
        "speed": "–" if rate is None else f"{number(rate, 1)} {unit_of(run)}/s{' in updates' if run.rolls_out else ''}",
        "time": time_taken(run).removeprefix("in all ") or "–",
        "workers": number(summary_of.get("workers")),
    }


def _state(run: Run) -> str:
    if run.summary is not None:
        return "finished"
    return "running" if has_driver(run.folder) else "not finished"


def numbers(runs: Sequence[Compared]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each table of evaluations: of the kept models, and of the last ones where these are others; of
    pairs and of rollouts apart, whose metrics are others."""
    tables = []
    for what, rolls_out in (("pairs", False), ("prompts", True)):
        kind = [each for each in runs if each.run.rolls_out == rolls_out]
        last = {each.label: _last_evaluation(each.run) for each in kind}
        evaluated = [each for each in kind if last[each.label] is not None]
        kept = [(each, each.run.kept_step) for each in evaluated]
        tables.append((f"Held-out {what}: the model that is kept", _evaluations(kept)))
        if any(step != last[each.label] for each, step in kept):
            now = [(each, last[each.label]) for each in evaluated]
            tables.append((f"Held-out {what}: the last evaluation", _evaluations(now)))
    return [(title, rows) for title, rows in tables if rows]


def _last_evaluation(run: Run) -> int | None:
    steps, _ = run.series(run.evaluated)
    return int(steps[-1]) if steps.size else None


def _evaluations(at: Sequence[tuple[Compared, int | None]]) -> list[Row]:
    columns: dict[str, str] = {}
    for each, _ in at:
        columns |= columns_of_rollouts(each.run) if each.run.rolls_out else EVALUATION_COLUMNS
    there = {
        key: title for key, title in columns.items() if any(key in line for each, _ in at for line in each.run.lines)
    }
    return [
        {
            "run": each.label,
            "step": number(step),
            **{title: number(each.run.value_at(key, step)) for key, title in there.items()},
        }
        for each, step in at
    ]


def scored(runs: Sequence[Compared]) -> list[Row]:
    """Of each run that has them, what its scores of single comparisons say, with 95% intervals."""
    return [_scored(each.label, each.scores, summary(each.scores)) for each in runs if isinstance(each.scores, Scores)]


def _scored(label: str, scores: Scores, found: Summary) -> Row:
    nats = "–" if scores.rewards else ""
    return {
        "run": label,
        "ranks by": "reward" if scores.rewards else "mean log-prob",
        "n": number(found.accuracy.comparisons),
        "records": number(found.accuracy.records),
        "ranked right": f"{percent(found.accuracy.value, 1)}{_interval(found.accuracy, 100, 1)}",
        "chosen log-prob": nats or f"{number(found.chosen.value)}{_interval(found.chosen)}",
        "log-prob margin": nats or f"{number(found.margin.value)}{_interval(found.margin)}",
    }


def _interval(mean: Mean, times: float = 1, digits: int = 3) -> str:
    if mean.ci95 is None:
        return ""
    low, high = (number(times * end, digits) for end in mean.ci95)
    return f" ({low} to {high})"


def contrasts(runs: Sequence[Compared]) -> tuple[list[Row], list[str]]:
    """A row for each two runs that scored the same comparisons by the same kind of score; in words, which did not."""
    having = [each for each in runs if isinstance(each.scores, Scores)]
    pairs = list(combinations(having, 2)) if len(having) <= _ALL_PAIRS else [(each, having[0]) for each in having[1:]]
    found: list[tuple[str, Contrast]] = []
    apart: dict[str, list[str]] = {}
    for one, other in pairs:
        assert isinstance(one.scores, Scores) and isinstance(other.scores, Scores)
        if reason := parted(one, other, (runs_alike.held_out, _kind_of_score)):
            apart.setdefault(reason, []).append(f"{one.label} and {other.label}")
        else:
            # The later is looked at beside the earlier: a base, a baseline, comes first.
            later, earlier = (one, other) if len(having) > _ALL_PAIRS else (other, one)
            assert isinstance(later.scores, Scores) and isinstance(earlier.scores, Scores)
            found.append((f"{later.label} − {earlier.label}", contrast(later.scores, earlier.scores)))
    adjusted = holm([each.accuracy.p_value for _, each in found])
    rows = [_contrast(name, each, p) for (name, each), p in zip(found, adjusted, strict=True)]
    return rows, [f"Not compared, as {reason}: {'; '.join(names)}." for reason, names in apart.items()]


def _kind_of_score(a: Compared, b: Compared) -> str:
    assert isinstance(a.scores, Scores) and isinstance(b.scores, Scores)
    return "" if a.scores.rewards == b.scores.rewards else "one ranks by log-probs and one by rewards"


def _contrast(name: str, found: Contrast, p_holm: float) -> Row:
    chosen, margin = found.chosen, found.margin
    return {
        "runs": name,
        "n": number(found.accuracy.comparisons),
        "ranked right, points": f"{_signed(100 * found.accuracy.value, 1)}{_interval(found.accuracy, 100, 1)}",
        "p": probability(found.accuracy.p_value),
        "p (Holm)": probability(p_holm),
        "told apart": "yes" if p_holm < _SIGNIFICANT else "no",
        "chosen log-prob": "–" if chosen is None else f"{_signed(chosen.value)}{_interval(chosen)}",
        "log-prob margin": "–" if margin is None else f"{_signed(margin.value)}{_interval(margin)}",
        "p of the margin": "–" if margin is None else probability(margin.p_value),
    }


def _signed(value: float, digits: int = 3) -> str:
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def remarks_on_scores(runs: Sequence[Compared], compared: bool) -> list[str]:
    """What the tables of scores mean, and who is not in them."""
    having = [each for each in runs if isinstance(each.scores, Scores)]
    missing = [f"{each.label}: {each.scores}" for each in runs if isinstance(each.scores, str)]
    said = []
    if having:
        said.append(
            "Ranked right: chosen has the greater score, ties half. Policies rank by the mean log-prob per token, "
            "whatever they were trained by; reward models by the reward. In brackets 95% bootstrap intervals, over "
            "records; records of the same prompt count as independent."
        )
    if compared:
        said.append(
            "A difference is the first run's less the second's on the very same comparisons, with a paired interval "
            "and a sign-flip test by record; “told apart” means that the p-value of what is ranked right, adjusted by "
            "Holm's method for the number of rows, is below 0.05. It speaks of these models alone: another seed makes "
            "another."
        )
    if len(having) > _ALL_PAIRS:
        said.append(f"Each of the {len(having)} runs is compared with the first.")
    if missing:
        said.append(f"Without scores of single comparisons: {'; '.join(missing)}.")
    return said
