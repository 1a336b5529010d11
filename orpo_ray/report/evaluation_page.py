"""The report of an evaluation: `report.html`, one file that needs nothing beside it, its responses included."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.report import (
    evaluation_answer,
    evaluation_browser,
    evaluation_figures,
    evaluation_judges,
    evaluation_tables,
    evaluation_words,
    figures,
    leaderboard_tables,
)
from orpo_ray.report.evaluation_folder import STATISTICS, Evaluation, Floats, Numbers, read_evaluation
from orpo_ray.report.numbers import describe_change, number
from orpo_ray.report.page import render, write_page
from orpo_ray.report.rollout_frontier import frontier, frontier_caption
from orpo_ray.report.runs import Run, read_run

SHOWN_WITHOUT_SCRIPT = 10


def write_evaluation_report(folder: Path, curves: Mapping[str, Path] | None = None) -> Path:
    """Draw `report.html` in the folder of an evaluation from the files there, and return its path.

    `curves` maps a label to the folder of a training run; their log-prob curves then stand side by side. Raises
    `UserError`, naming the file, where one is missing or unreadable, or the page cannot be written.
    """
    evaluation = read_evaluation(folder)
    runs = {label: read_run(path) for label, path in (curves or {}).items()}
    numbers = evaluation.numbers
    entries = evaluation_browser.entries(evaluation)
    ranked = _ranked(numbers, next(iter(numbers.deciders), ""))
    best = ranked[:2]
    settings = numbers.model_dump(include={"rounds", "tie"}) | {
        "models": list(numbers.models), "judges": numbers.deciders, "best": best, "prompts": entries,
    }  # fmt: skip
    html = render(
        "evaluation.html",
        title=numbers.name,
        numbers=numbers,
        given=not all(model.was_asked for model in numbers.models.values()),
        labels=list(numbers.models),
        outdated=numbers.statistics < STATISTICS,
        rankings=evaluation_answer.rankings(numbers),
        of_orpo=evaluation_answer.comparisons(numbers, evaluation_answer.trained_by_orpo(numbers)),
        notices=[
            *evaluation_words.doubts(numbers),
            *evaluation_words.cut(evaluation),
            *evaluation_words.disagreements(numbers, ranked),
        ],
        headlines=evaluation_words.headlines(numbers, ranked),
        facts=_facts(evaluation),
        judges=[_judge(numbers, label) for label in numbers.deciders],
        leaderboards=leaderboard_tables.sections(numbers.leaderboards, folder / "winrates.json"),
        in_words=evaluation_judges.sections(numbers.judges, list(numbers.models)),
        rewards=_reward_figures(evaluation),
        lengths=_length_figure(evaluation),
        turns=evaluation.responses.turns,
        model_tables=evaluation_tables.models(numbers),
        reward_models=evaluation_tables.reward_models(numbers),
        agreement=evaluation_tables.agreement(numbers),
        curves=_curves(runs, numbers),
        one_axis=_one_axis(runs, numbers),
        training=evaluation_tables.training(runs),
        embedders=sorted({m.diversity.embedder for m in numbers.models.values() if m.diversity.embedder}),
        entries=entries,
        shown=entries[:SHOWN_WITHOUT_SCRIPT],
        data=evaluation_browser.to_json(settings),
        origins=evaluation_tables.origins(numbers),
        configuration=yaml.safe_dump(evaluation.config, sort_keys=False, allow_unicode=True),
    )
    return write_page(folder / "report.html", html)


def _ranked(numbers: Numbers, reward_model: str) -> list[str]:
    """The models, best rated first; any without a rating come last."""
    rated = [entry.model for entry in numbers.ratings.get(reward_model, [])]
    return rated + [label for label in numbers.models if label not in rated]


def _facts(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """What was compared: what each number is, the number, and a word on it."""
    numbers, sampling = evaluation.numbers, evaluation.numbers.sampling
    models, word = numbers.models.values(), f"top-p {sampling.top_p:g}, at most {sampling.max_tokens:,} tokens"
    word += f"; otherwise in {', '.join(sampling.by_category)}" * bool(sampling.by_category)
    responses, asked = sum(m.responses for m in models), sum(m.asked for m in models)
    own = [name for name in DATA_LABELS if any(name in prompt.data for prompt in evaluation.prompts)]
    rounds = f"{number(numbers.rounds)} round{'' if numbers.rounds == 1 else 's'}"
    return [
        ("Models", number(len(numbers.models)), ", ".join(numbers.models)),
        ("Prompts", number(numbers.prompts), f"with the data's {' and '.join(own)}" if own else ""),
        ("Responses", number(responses), f"of {number(asked)} asked for, in {rounds}"),
        ("Sampling", f"T = {sampling.temperature:g}", word)
        if any(model.was_asked for model in models)
        else ("Sampling", "–", "all answers were made elsewhere"),
    ]


def _judge(numbers: Numbers, reward_model: str) -> dict[str, Any]:
    """The comparisons under one reward model: a matrix, its figures, a table of everything."""
    ranked = _ranked(numbers, reward_model)
    rated = numbers.ratings.get(reward_model, [])
    colours = evaluation_figures.colours(list(numbers.models))
    pairs = [pair for a, b in combinations(ranked, 2) if (pair := numbers.pair(a, b, reward_model))]
    return {
        "label": reward_model,
        "models": ranked,
        "cells": [
            [evaluation_answer.cell(numbers.pair(model, against, reward_model)) for against in ranked]
            for model in ranked
        ],
        "ratings": evaluation_figures.ratings(rated, colours, reward_model) if rated else None,
        "forest": evaluation_figures.forest(pairs) if pairs else None,
        "pairs": evaluation_tables.pairs(numbers, reward_model),
    }


def _reward_figures(evaluation: Evaluation) -> list[tuple[str, Markup, str]]:
    """Title, figure and caption for each reward model."""
    drawn = []
    for reward_model, values in evaluation.responses.rewards.items():
        models = {label: _of(evaluation, label, values) for label in evaluation.numbers.models}
        data = {name: _of(evaluation, name, values) for name in DATA_LABELS}
        figure = evaluation_figures.rewards(models, data, reward_model)
        means = [f"{label} {number(float(own.mean()), 2)}" for label, own in (models | data).items() if own.size]
        if figure is not None:
            drawn.append((reward_model, figure, f"Mean: {', '.join(means)}."))
    return drawn


def _length_figure(evaluation: Evaluation) -> Markup | None:
    tokens = {label: _of(evaluation, label, evaluation.responses.tokens) for label in evaluation.numbers.models}
    return evaluation_figures.lengths(tokens, evaluation.numbers.sampling.max_tokens, evaluation.responses.turns)


def _of(evaluation: Evaluation, label: str, values: Floats) -> Floats:
    """The finite values of one model's responses."""
    own = (evaluation.responses.models == label) & np.isfinite(values)
    return np.asarray(values[own])


def _curves(runs: Mapping[str, Run], numbers: Numbers) -> list[tuple[str, Markup | None, str]]:
    """Label, log-prob curves and caption of each run; of one on rollouts its reward against KL."""
    on_one_axis = _on_one_axis(runs, numbers)
    limits = figures.log_prob_limits(list(on_one_axis.values())) if on_one_axis else None
    drawn: list[tuple[str, Markup | None, str]] = []
    for label, run in runs.items():
        if run.rolls_out:
            drawn.append((label, frontier(run), f"Reward against KL. {frontier_caption(run)}"))
            continue
        changes = [(name, describe_change(run, f"eval_logps_{name}")) for name in DATA_LABELS]
        said = "; ".join(f"{name} {change}" for name, change in changes if change)
        figure = figures.log_probs(run, limits if label in on_one_axis else None)
        drawn.append((label, figure, f"On held-out pairs: {said}." if said else ""))
    return drawn


def _on_one_axis(runs: Mapping[str, Run], numbers: Numbers) -> dict[str, Run]:
    """The runs whose log-probs share a y axis: those of models that are compared, where any is known to be. A base
    model's, which come from far below, would leave the others flat."""
    paths = [Path(model.path).resolve() for model in numbers.models.values() if model.was_asked]
    compared = {folder for path in paths for folder in (path, path.parent)}
    of_pairs = {label: run for label, run in runs.items() if not run.rolls_out}
    return {label: run for label, run in of_pairs.items() if run.folder.resolve() in compared} or of_pairs


def _one_axis(runs: Mapping[str, Run], numbers: Numbers) -> str:
    """Which log-probs share a y axis; empty where no two do."""
    shared = _on_one_axis(runs, numbers)
    if len(shared) < 2:
        return ""
    if len(shared) == sum(not run.rolls_out for run in runs.values()):
        return "One y axis for all log-probs."
    return f"One y axis for the log-probs of the models compared ({', '.join(shared)}); each other run has its own."
