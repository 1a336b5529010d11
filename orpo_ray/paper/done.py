"""Which stages of a paper are done: carried out with what decides them now, as a record and their folder say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from orpo_ray.config import EvaluationConfig, read_yaml
from orpo_ray.config.identity import other_settings
from orpo_ray.config.paper import DONE
from orpo_ray.errors import UserError
from orpo_ray.paper.stages import PaperStages
from orpo_ray.storage.run_folder import write_atomically


def finished(stages: PaperStages) -> dict[str, Path]:
    """The pages of stages that were carried out with what decides them now, by label."""
    pages = {stage.label: stage.folder / "report.html" for stage in stages.graph}
    return {
        label: page for label, page in pages.items()
        if page.is_file() and _recorded(stages, label) == _digest(stages, label) and _holds_its_own(stages, label)
    }  # fmt: skip


def keep_done(stages: PaperStages, label: str) -> None:
    """A stage has been carried out."""
    write_atomically(_record(stages, label), _digest(stages, label))


def forget_done(stages: PaperStages, labels: Iterable[str]) -> None:
    """Before these stages are begun again: a folder that other settings had has no results of the old ones then."""
    (stages.folder / DONE).mkdir(exist_ok=True)
    for label in labels:
        if _recorded(stages, label):
            write_atomically(_record(stages, label), "")


def is_of_others(stages: PaperStages, label: str) -> bool:
    """Whether what is in a stage's folder may be of other settings or data than decide it now; not where the paper's
    command has never carried it out."""
    return _recorded(stages, label) not in (None, _digest(stages, label))


def settings_of_others(own: EvaluationConfig, file: Path) -> list[str]:
    """Dotted keys in which what an evaluation's folder was made with differs from what is asked for now, wherever the
    paper lies; of a file that no configuration can be read from none."""
    try:
        held = EvaluationConfig.model_validate(read_yaml(file))
    except ValidationError:  # what is masked in it may be what is missing
        return []
    differing = other_settings(held.for_a_file(), own.for_a_file())
    return [key for key in differing if not key.startswith("scaling.")]  # how many actors: no number


def _holds_its_own(stages: PaperStages, label: str) -> bool:
    """An evaluation keeps its folder whatever it is asked, and may have been asked otherwise by its own command."""
    own, file = stages.graph.stages[label].config, stages.graph.stages[label].folder / "config.yaml"
    try:
        return not isinstance(own, EvaluationConfig) or not settings_of_others(own, file)
    except UserError:
        return False


def _record(stages: PaperStages, label: str) -> Path:
    return stages.folder / DONE / label


def _digest(stages: PaperStages, label: str) -> str:
    return stages.digests[stages.places[label]]


def _recorded(stages: PaperStages, label: str) -> str | None:
    """None where there is no record."""
    record = _record(stages, label)
    return record.read_text(encoding="utf-8", errors="replace") if record.is_file() else None
