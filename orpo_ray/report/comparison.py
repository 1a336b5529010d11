"""Runs side by side: the page that `make demo` ends with, and the picture of its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orpo_ray.errors import UserError
from orpo_ray.evaluation.winrate import WinRate
from orpo_ray.report import figures
from orpo_ray.report.page import describe_change, number, percent, render, write_page
from orpo_ray.report.runs import Run, read_run

SHOWN_SAMPLES = 20


@dataclass(frozen=True)
class Sample:
    """What each run (by its label) answered to one prompt, and the true score of each answer."""

    prompt: str
    responses: Mapping[str, str]
    scores: Mapping[str, int]


def write_comparison(
    out: Path,
    runs: Mapping[str, Path],
    samples: Sequence[Sample],
    winrates: Mapping[str, WinRate],
    title: str,
) -> Path:
    """Write the self-contained page `out` that sets runs side by side, and return its path.

    `runs` maps a label to a run folder, `winrates` a label such as "ORPO over SFT" to its result. All samples
    count in the distributions; the first 20 are printed. Raises `UserError` where a run folder cannot be read.
    """
    read = {label: read_run(folder) for label, folder in runs.items()}
    limits = figures.log_prob_limits(list(read.values()))
    scores = {
        label: np.array([sample.scores[label] for sample in samples if label in sample.scores], dtype=np.int64)
        for label in read
    }
    scores = {label: values for label, values in scores.items() if values.size}
    html = render(
        "comparison.html",
        title=title,
        curves=[(label, figures.log_probs(run, limits), _caption(run)) for label, run in read.items()],
        rows=[_row(label, run, scores.get(label)) for label, run in read.items()],
        distribution=figures.score_distribution(scores) if scores else None,
        winrates=[(label, result, _verdict(result)) for label, result in winrates.items()],
        winrate_figure=figures.win_rates(dict(winrates)) if winrates else None,
        labels=list(read),
        samples=samples[:SHOWN_SAMPLES],
        sample_count=len(samples),
    )
    return write_page(out, html)


def curves_png(out: Path, runs: Mapping[str, Path]) -> Path:
    """Draw the chosen and rejected log-probs of runs in adjacent panels (the paper's Figures 3 and 7) as a PNG."""
    figure = figures.panels({label: read_run(folder) for label, folder in runs.items()})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=180, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return out


def _row(label: str, run: Run, scores: NDArray[np.int64] | None) -> dict[str, str]:
    objective = run.section("objective")
    return {
        "run": label,
        "λ": f"{objective['lambda']:g}" if isinstance(objective.get("lambda"), (int, float)) else "–",
        "steps": number(run.last_step),
        "eval loss": number(run.value_at("eval_loss", run.best_step)),
        "reward accuracy": percent(run.value_at("eval_reward_accuracy", run.best_step), 1),
        "mean true score": number(float(scores.mean()), 2) if scores is not None else "–",
    }


def _caption(run: Run) -> str:
    changes = ((name, describe_change(run, f"eval_logps_{name}")) for name in ("chosen", "rejected"))
    return "; ".join(f"{name} {change}" for name, change in changes if change)


def _verdict(result: WinRate) -> str:
    low, high = result.ci95
    if low > 0.5:
        return "above an even 50%"
    return "below an even 50%" if high < 0.5 else "not told apart from an even 50%"
