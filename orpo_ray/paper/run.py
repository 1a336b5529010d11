"""`orpo-ray paper`: from base models to one page, as one command that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from orpo_ray.config.kinds import held_for
from orpo_ray.paper.page import write_paper
from orpo_ray.paper.plan import Plan
from orpo_ray.paper.stages import PaperStages
from orpo_ray.stages.run import StagesFailed, run_stages
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.storage.run_folder import write_atomically
from orpo_ray.terminal import Console

DONE = "done"
"""In the paper's folder: a file for each stage that was done, with the digest of what decided it."""


def run_paper(stages: PaperStages, plan: Plan, console: Console) -> Path:
    """Carry out every stage that is not done, and draw the page of all that there is; returns its path.

    `plan`: its seconds tell what is left. Raises `StagesFailed` where stages have failed, when the page is drawn; all
    else as `run_stages` does.
    """
    with only_driver(stages.folder, console):
        held_for("paper", stages.folder / "config.yaml")
        write_atomically(stages.folder / "config.yaml", stages.config.to_yaml())
        (stages.folder / DONE).mkdir(exist_ok=True)
        failed: StagesFailed | None = None
        try:
            run_stages(
                stages.graph, console, done=finished(stages), usual=plan.usual,
                ended=lambda label: write_atomically(_record(stages, label), _digest(stages, label)),
            )  # fmt: skip
        except StagesFailed as error:
            failed = error
        console.say("drawing the page")
        page = write_paper(stages, failed.failed if failed else {})
        if failed:
            console.say(f"{page} shows what there is")
            raise failed
        return page


def finished(stages: PaperStages) -> dict[str, Path]:
    """The pages of stages that were carried out with what decides them now, by label."""
    pages = {stage.label: stage.folder / "report.html" for stage in stages.graph}
    return {
        label: page for label, page in pages.items()
        if page.is_file() and _read(_record(stages, label)) == _digest(stages, label)
    }  # fmt: skip


def _record(stages: PaperStages, label: str) -> Path:
    return stages.folder / DONE / label


def _digest(stages: PaperStages, label: str) -> str:
    return stages.digests[stages.places[label]]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
