"""What a run leaves behind: `runs/<name>/` and its files, written by rank 0 and by the driver."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from orpo_ray.atomic import new_file
from orpo_ray.config import TrainConfig
from orpo_ray.config.identity import differences, identity
from orpo_ray.config.kinds import held_for
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.errors import UserError
from orpo_ray.masking import masked
from orpo_ray.parsing import member, read_lines, read_object, read_text
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.telemetry.logs import line_of, log
from orpo_ray.visible import say

_ANY_STEP = 2**63
LENGTH = ("train.epochs", "train.max_steps")
"""The settings that say how many steps a run has."""
_LOOK = 1.0  # seconds between two looks for a file

STEP_OF_MODEL = "training_step.json"
"""In a model's folder: the step that its weights are of, and why they are kept."""
LAST = "the last evaluated"
"""Why a run keeps a model, if not for being the best (`train.best`)."""
_BEST = "lowest eval loss"  # what those of earlier versions are kept for, which do not say
MODEL_IN_CHECKPOINT = "model"
"""The Hugging Face model beside the shards of a checkpoint, where `eval.win_rate` has something to ask it."""


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.model_last = path / "model-last"
        self.adapter_last = path / "adapter-last"
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"
        self.eval_scores = path / "eval_scores.parquet"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.ray = path / "ray"
        self.events = path / "events.jsonl"
        self._last_checkpoint = path / "last_checkpoint.json"
        self.quarantine = path / "quarantine.jsonl"
        self.win_rate = path / "win_rate"
        self.rollouts = path / "rollouts"
        self.model_to_draw_from = self.rollouts / ".model"
        self.samples = path / "samples.jsonl"

    @property
    def finished(self) -> bool:
        return self.summary.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is anything of training in it: a step, a checkpoint, a model."""
        kept = self.last_checkpoint is not None or any(self.checkpoints.glob("step-*")) or self.model.exists()
        return kept or self.finished or self.last_steps()[0] >= 0

    def open_for(self, config: TrainConfig) -> None:
        """Create the folder, or make sure that the run in it is the same one. What has not begun may become another
        one; of what has finished nothing is changed (see `reopening`).

        Raises `UserError` where it holds a run of another configuration, but for `resume.allow_changes`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held, wanted = held_for("training run", self.config), config.for_a_file()
        differing = [] if held is None else differences(held, wanted)
        if differing and not self.begun:
            for file in (self.metrics, self.events, self.quarantine, self.samples):  # of the command that was corrected
                file.unlink(missing_ok=True)
            for folder in (self.tensorboard, self.wandb, self.rollouts):
                shutil.rmtree(folder, ignore_errors=True)
            differing = []
        may_differ = LENGTH if self.finished else config.resume.allow_changes
        if refused := ", ".join(key for key in differing if key not in may_differ):
            if self.finished:
                kind, way = "finished run", f"go on from its model: name=..., model.name_or_path={self.path}"
            else:
                kind, way = "run", f"continue it with 'resume.allow_changes=[{refused}]'"
            raise UserError(
                f"{self.path}: holds a {kind} with other settings ({refused}); choose another name=..., remove the "
                f"folder, or {way}"
            )
        self.forget_after(_ANY_STEP)  # mistakes are told here, before workers start
        _ = kept_model(self.model), kept_model(self.model_last), self.last_checkpoint
        if self.finished and held is not None:
            return
        if held is not None and differing:
            before, now = identity(held), identity(wanted)
            told = ", ".join(f"{key} {now.get(key)!s:.80} (before: {before.get(key)!s:.80})" for key in differing)
            self.note(f"continued with other settings: {told}")
        write_atomically(self.config, config.to_yaml())

    def forget_after(self, step: int, *, evaluation_too: bool = False) -> None:
        """Drop metrics of steps that a resumed run is about to repeat, and a last line cut short. `evaluation_too`: and
        what was measured at `step` itself.

        One that begins anew, at step 0, repeats the evaluation of step 0 too. Raises `UserError` where a line before is
        no metrics line.
        """
        if not self.metrics.is_file():
            return
        last = step or -1
        try:
            found = read_metrics(self.metrics)
        except UserError as error:
            raise UserError(f"{error}; the file was changed by something else: mend or remove that line") from None
        texts = read_text(self.metrics).split("\n")
        kept = [
            texts[number - 1] + "\n"
            for number, line in found.items()
            if line["step"] < last or (line["step"] == last and not (evaluation_too and "loss" not in line))
        ]
        write_atomically(self.metrics, "".join(kept))

    @contextmanager
    def without_model_to_draw_from(self) -> Iterator[None]:
        """After the body, whose engines begin with that model, it is gone: `rollouts` holds responses."""
        try:
            yield
        finally:
            shutil.rmtree(self.model_to_draw_from, ignore_errors=True)

    def last_steps(self) -> tuple[int, int]:
        """Of the training lines and of the evaluation lines that are there; -1: none. Raises `UserError` as
        `forget_after` does."""
        last = [-1, -1]
        if self.metrics.is_file():
            for line in read_metrics(self.metrics).values():
                last["loss" not in line] = max(last["loss" not in line], line["step"])
        return last[0], last[1]

    def note(self, text: str, **more: Any) -> None:
        """Add to `events.jsonl` what a person should know of: what was passed over, and what could not be done."""
        log(text, logging.WARNING)
        try:
            with self.events.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line_of(text, **more), ensure_ascii=False) + "\n")
        except OSError as error:  # the disk may be what is wrong
            say(f"{text} ({self.events} cannot be written: {error})", error=True)

    def note_once(self, text: str, **more: Any) -> None:
        """As `note`, unless it is there: a remark, which holds of a run whenever it is continued."""
        lines = read_lines(self.events).values() if self.events.is_file() else ()
        if all(line.get("event") != masked(text) for line in lines):
            self.note(text, remark=True, **more)

    def note_checkpoint(self, step: int, location: str) -> None:
        """Remember that the run can be continued from a checkpoint: were all of them lost, it must not begin anew."""
        text = json.dumps({"step": step, "location": masked(location)}) + "\n"
        try:
            write_atomically(self._last_checkpoint, text)
        except OSError as error:
            self.note(f"{self._last_checkpoint} cannot be written: {error}")

    @property
    def last_checkpoint(self) -> dict[str, Any] | None:
        """Its `step` and `location`; None: the run has not saved any. Raises `UserError` where the file is no such."""
        if not self._last_checkpoint.is_file():
            return None
        try:
            found = read_object(self._last_checkpoint)
            return {"step": member(found, "step", int), "location": member(found, "location", str)}
        except (UserError, ValueError):
            raise UserError(f"{self._last_checkpoint}: was changed by something else; remove it") from None

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line that another process than rank 0 has found, in one write."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class KeptModel(NamedTuple):
    """A model's folder in a run's."""

    step: int
    why: str


def kept_model(folder: Path) -> KeptModel | None:
    """None: there is none. Raises `UserError` where it does not say."""
    file = folder / STEP_OF_MODEL
    if not file.is_file():
        return None
    try:
        found = {"why": _BEST, **read_object(file)}
        return KeptModel(member(found, "step", int), member(found, "why", str))
    except (UserError, ValueError) as error:
        told = error if isinstance(error, UserError) else f"{file}: {error}"
        raise UserError(f"{told}; restore it, or remove {folder} to have another model kept") from None


def require_kept(folder: RunFolder, keep: str, *, patience: float = 0.0) -> None:
    """Raises `UserError` where a run that has come to its end has left no metrics, or not what `train.keep` asks for.

    `patience`: seconds that another host's files may take to be seen here.
    """
    deadline = time.monotonic() + patience
    models = {"best": [folder.model], "last": [folder.model], "both": [folder.model, folder.model_last]}[keep]
    wanted = [folder.metrics, *(model / STEP_OF_MODEL for model in models)]
    while missing := [path for path in wanted if not path.is_file()]:
        if time.monotonic() > deadline:
            raise UserError(
                f"{folder.path}: training has come to its end and left no {missing[0].relative_to(folder.path)}, so "
                f"the run is not finished; {folder.events.name} says what could not be kept, and orpo-ray export makes "
                "a model of a checkpoint"
            )
        time.sleep(_LOOK)


def write_eval_scores(path: Path, held_out: Pairs, table: Tensor) -> None:
    """What the kept model gives the responses of each held-out comparison: summed log-probs, or rewards.

    Columns: `source` where there are several, `record` (index in the source), tokens of prompt, chosen and rejected,
    and the two scores. Responses that are labelled have a row each instead: `record`, `prompt_tokens`,
    `response_tokens`, `desirable`, `response`.
    """
    compared = held_out.compared()
    lengths = compared.of(held_out.lengths())
    scored = table.cpu().numpy()[compared.records[:, None], compared.columns]
    names = ("prompt", "response") if held_out.rule == "labels" else ("prompt", "chosen", "rejected")
    columns: dict[str, Any] = {}
    if isinstance(held_out, JoinedPairs):
        columns["source"] = held_out.sources_of(compared.records)
    columns["record"] = held_out.record_ids[compared.records]
    columns |= {f"{name}_tokens": lengths[:, i] for i, name in enumerate(names)}
    if held_out.rule == "labels":
        columns["desirable"] = held_out.ranks()[compared.records, compared.responses[:, 0]] == 0
    columns |= {name: scored[:, i] for i, name in enumerate(names) if i}
    write_table(path, pa.table(columns))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file so that a reader or a crash never meets half of it."""
    with new_file(path) as new:
        pq.write_table(table, new)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader or a crash never meets half of it."""
    with new_file(path) as new:
        new.write_text(text, encoding="utf-8")


def join_files(path: Path, parts: Iterable[Path]) -> None:
    """Write the contents of `parts` one after the other so that a reader or a crash never meets half of them."""
    with new_file(path) as new, new.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file)
