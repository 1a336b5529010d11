"""The page of several training runs: one file that needs nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orpo_ray.errors import UserError
from orpo_ray.report import comparison_tables as tables
from orpo_ray.report.comparison import Compared, batch_sizes, read_runs
from orpo_ray.report.comparison_figures import (
    STYLES,
    Curves,
    Lines,
    held_out_curves,
    loop_curves,
    summary_of_groups,
    training_curves,
)
from orpo_ray.report.page import render, write_page

NAME = "compare.html"


def write_comparison(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draw the page of the training runs in `folders`, finished or not, and return its path: `out`, else `compare.html`
    in the folder that holds them all.

    Raises `UserError`, naming the folder or the file, where one is no readable training run, or the page cannot be
    written.
    """
    place = _common(folders) / NAME if out is None else out
    if place.suffix != ".html":
        raise UserError(f"{place}: a page is written to a file that ends in .html")
    return write_page(place, comparison_page(read_runs(folders)))


def _common(folders: Sequence[Path]) -> Path:
    """What holds all of them. Raises `UserError` where that is the whole file system."""
    above = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    if above == Path(above.anchor):
        raise UserError(f"no folder but {above} holds all of these runs; say where the page goes: --out {NAME}")
    here = Path.cwd()
    return above.relative_to(here) if above.is_relative_to(here) else above


def comparison_page(runs: Sequence[Compared]) -> str:
    lines = Lines(runs)
    held_out, trained = held_out_curves(runs, lines), training_curves(runs, lines)
    sections = [
        ("On held-out data", held_out),
        ("While training", trained),
        ("Learning rate and speed", loop_curves(runs, lines)),
    ]
    contrasts, not_compared = tables.contrasts(runs)
    return render(
        "comparison.html",
        title=f"{len(runs)} runs side by side",
        labels=[each.label for each in runs],
        styles=STYLES,
        apart=apart(held_out, trained),
        standings=tables.standings(runs),
        remarks=remarks(runs, lines),
        settings=tables.settings(runs),
        sections=[
            (name, [each for each in curves if not each.alone], [each for each in curves if each.alone])
            for name, curves in sections
            if curves
        ],
        numbers=tables.numbers(runs),
        scored=tables.scored(runs),
        contrasts=contrasts,
        of_scores=[*not_compared, *tables.remarks_on_scores(runs, bool(contrasts))],
    )


def apart(held_out: Sequence[Curves], trained: Sequence[Curves]) -> str:
    """One sentence on all curves that do not share axes, and why; empty where all do."""
    found: dict[str, dict[str, None]] = {}
    for curves in (held_out, trained):
        for reason, titles in summary_of_groups(curves).items():
            found.setdefault(reason, {}).update(dict.fromkeys(titles))
    said = [f"{_listed(list(titles))}, as {reason}" for reason, titles in found.items()]
    return f"Drawn apart, since they do not compare: {'; '.join(said)}." if said else ""


def _listed(titles: Sequence[str]) -> str:
    words = [title if title.startswith(("NLL", "KL")) else title[0].lower() + title[1:] for title in titles]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def remarks(runs: Sequence[Compared], lines: Lines) -> list[str]:
    """What the x axis is, and whose steps held what could not be computed."""
    said = []
    sizes = batch_sizes(runs)
    if lines.across.word != "step":
        said.append(
            f"Steps are not of one size (train.global_batch_size), so curves are drawn over {lines.across.word}: steps "
            "times that size, of which the last step of an epoch may hold fewer."
        )
    elif sizes is None:
        said.append("Curves are drawn over steps: not every config.yaml says how many pairs one has.")
    else:
        said.append("Curves are drawn over steps, which are of one size in all runs.")
    skipped = {each.label: sum("skipped" in line for line in each.run.lines) for each in runs}
    told = "the loss or the gradient was not finite at"
    return said + [f"{label}: {told} {steps:,} steps, which were skipped." for label, steps in skipped.items() if steps]
