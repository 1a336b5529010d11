"""The picture of runs' curves, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orpo_ray.errors import UserError
from orpo_ray.report import figures
from orpo_ray.report.runs import Run


def curves_png(out: Path, runs: Mapping[str, Run]) -> Path:
    """Draw the chosen and rejected log-probs of runs in adjacent panels (the paper's Figures 3 and 7) as a PNG."""
    figure = figures.panels(dict(runs))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=180, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return out
