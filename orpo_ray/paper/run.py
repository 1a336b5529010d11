"""`orpo-ray paper`: from base models to one page, as one command that goes on where it stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from orpo_ray.config.kinds import held_for
from orpo_ray.paper.done import finished, forget_done, keep_done
from orpo_ray.paper.page import write_paper
from orpo_ray.paper.plan import Plan
from orpo_ray.paper.stages import PaperStages
from orpo_ray.stages.run import StagesFailed, run_stages
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.storage.run_folder import write_atomically
from orpo_ray.terminal import Console


def run_paper(stages: PaperStages, plan: Plan, console: Console) -> Path:
    """Carry out every stage that is not done, and draw the page of all that there is; returns its path.

    `plan`: its seconds tell what is left. Raises `StagesFailed` where stages have failed, when the page is drawn; all
    else as `run_stages` does.
    """
    with only_driver(stages.folder, console):
        held_for("paper", stages.folder / "config.yaml")
        write_atomically(stages.folder / "config.yaml", stages.config.to_yaml())
        done = finished(stages)
        forget_done(stages, [stage.label for stage in stages.graph if stage.label not in done])
        failed: StagesFailed | None = None
        try:
            run_stages(stages.graph, console, done=done, usual=plan.usual, ended=partial(keep_done, stages))
        except StagesFailed as error:
            failed = error
        console.say("drawing the page")
        page = write_paper(stages, failed.failed if failed else {})
        if failed:
            console.say(f"{page} shows what there is")
            raise failed
        return page
