"""Checkpoints of a run: a copy of the state is taken between two steps, and written while training goes on.

Each rank writes what it holds, as runs of parameters' elements; so any number of ranks, and any engine, continues from
any checkpoint, reading the elements it needs. What the source of steps carries has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors.numpy
import torch
from torch import Tensor, nn

from orpo_ray.errors import UserError
from orpo_ray.storage.checkpoint_files import FileSum, Vector, read_header, read_into, write_bytes, write_vectors
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.patience import STORAGE_ERRORS, patiently
from orpo_ray.training.engine import Engine
from orpo_ray.training.source import Arrays

_PARTS = ("weight", "exp_avg", "exp_avg_sq")

Warn = Callable[[str], None]


class Copy:
    """Host memory for what this rank writes: `{name@start/part: (elements,) float32}`.

    It is taken once and written to at once, so that no checkpoint finds too little of it or pays for new pages.
    """

    def __init__(self, engine: Engine) -> None:
        pinned = engine.device.type == "cuda"
        self.vectors = {name: torch.empty(len(v), pin_memory=pinned).copy_(v) for name, v in _live(engine)}

    def update(self, engine: Engine) -> None:
        """The state of now."""
        for name, vector in _live(engine):
            self.vectors[name].copy_(vector)


def _live(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    pieces = engine.pieces()
    for piece in pieces[engine.rank :: engine.ranks] if engine.replicated else pieces:
        for part in _PARTS:
            yield f"{piece.name}@{piece.start}/{part}", getattr(piece, part)


_OF_RANK = "rank-"
_OF_SOURCE = "source.safetensors"


def file_of(rank: int) -> str:
    return f"{_OF_RANK}{rank:05d}.safetensors"


@dataclass
class _Pending:
    manifest: Manifest
    """Without its files."""
    written: Future[dict[str, FileSum]]
    """This rank's files."""


class Saver:
    """Saves the run of `engine`. Its methods, but for `signals`, are to be called by all ranks together."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        engine: Engine,
        newest: int,
        best: int,
        warn: Warn,
        committed: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._checkpoints = checkpoints
        self._engine = engine
        self._keep = {"newest": newest, "best": best}
        self._warn = warn
        """Called on rank 0 where a checkpoint could not be saved; training goes on."""
        self._committed = committed
        """Called on rank 0 with the step of each checkpoint that can be continued from."""
        self._copy = Copy(engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orpo_ray-checkpoint")
        self._pending: _Pending | None = None

    def begin(self, manifest: Manifest, carried: Arrays | None = None) -> None:
        """Copy the state and begin to write it. Waits for the checkpoint before, where that is not written yet.

        `carried`: what the source of steps carries, which does not change.
        """
        self.finish()
        problem = self._refused(lambda: self._checkpoints.open(manifest.step)) if self._engine.rank == 0 else None
        if self._engine.broadcast(problem) is None:
            self._copy.update(self._engine)
            self._pending = _Pending(manifest, self._thread.submit(self._write, manifest.step, carried or {}))
        else:
            self._lose(manifest.step, problem)

    def _write(self, step: int, carried: Arrays) -> dict[str, FileSum]:
        folder, own = self._checkpoints.folder(step), file_of(self._engine.rank)
        with self._checkpoints.filesystem.open_output_stream(f"{folder}/{own}") as file:
            written = {own: write_vectors(file, self._copy.vectors)}
        if carried and self._engine.rank == 0:
            with self._checkpoints.filesystem.open_output_stream(f"{folder}/{_OF_SOURCE}") as file:
                written[_OF_SOURCE] = write_bytes(file, safetensors.numpy.save(carried))
        return written

    def signals(self) -> dict[str, float]:
        """What this rank has to say at the end of a step; for `heard`, added up over ranks."""
        return {"written": float(self._pending is not None and self._pending.written.done())}

    def heard(self, signals: dict[str, float]) -> None:
        """Where all ranks have written, commit."""
        if signals["written"] == self._engine.ranks:
            self._settle()

    def finish(self) -> None:
        """Wait until nothing is being written, and commit it."""
        if self._pending is not None:
            self._pending.written.exception()
            self._settle()

    def _settle(self) -> None:
        assert self._pending is not None
        manifest, written = self._pending.manifest, self._pending.written
        self._pending = None
        error = written.exception()
        parts: list[dict[str, FileSum] | str] = self._engine.gather(repr(error) if error else written.result())
        if self._engine.rank > 0:
            return
        problem = next((f"rank {rank}: {part}" for rank, part in enumerate(parts) if isinstance(part, str)), None)
        if problem is None:
            files = {name: total for part in parts if not isinstance(part, str) for name, total in part.items()}
            whole = Manifest(**{**vars(manifest), "files": files})
            problem = self._refused(lambda: self._checkpoints.commit(whole))
        if problem is not None:
            self._lose(manifest.step, problem)
            return
        self._committed(manifest.step)
        if problem := self._refused(lambda: self._checkpoints.retain(**self._keep)):
            self._warn(f"checkpoints that are to go are still there: {problem}")

    def _lose(self, step: int, problem: str | None) -> None:
        """Training goes on without this checkpoint."""
        if self._engine.rank == 0:
            self._warn(f"the checkpoint of step {step} was not saved: {problem}")
            # It has no manifest, so it is none; where this fails too, the next one removes it.
            self._refused(lambda: self._checkpoints.discard(step))

    @staticmethod
    def _refused(work: Callable[[], None]) -> str | None:
        """What storage says against it, whatever kind of error a filesystem raises; None: it is done."""
        try:
            work()
        except Exception as error:
            return str(error) or repr(error)
        return None


def choose(checkpoints: Checkpoints, engine: Engine, warn: Warn) -> Manifest | None:
    """The newest checkpoint that is whole, on all ranks; None: the run has not saved any.

    `warn` is told, on rank 0, of each that is passed over. Raises `UserError` where there are some and none is whole.
    """
    finished = False
    manifest: Manifest | None
    for step in engine.broadcast(checkpoints.steps() if engine.rank == 0 else []):
        manifest, problem = engine.broadcast(_manifest(checkpoints, step) if engine.rank == 0 else None)
        finished = finished or problem != _UNFINISHED
        if manifest is not None:
            share = sorted(manifest.files)[engine.rank :: engine.ranks]
            problem = next(filter(None, engine.gather(checkpoints.damage(manifest, share))), "")
            if not problem:
                return manifest
        if engine.rank == 0:
            warn(f"the checkpoint of step {step} is passed over: {problem}")
    if finished:
        raise UserError(
            f"{checkpoints.location}: none of the checkpoints is whole; restore one, or remove them and the run's "
            "folder to train from the start"
        )
    return None


_UNFINISHED = "it was never finished"


def _manifest(checkpoints: Checkpoints, step: int) -> tuple[Manifest | None, str]:
    try:
        manifest = checkpoints.manifest(step)
    except (*STORAGE_ERRORS, ValueError) as error:
        return None, f"manifest.json: {error}"
    return manifest, "" if manifest else _UNFINISHED


BASE, REFERENCE = "model.name_or_path", "objective.reference"
_RESTS_ON = {BASE: "the base's frozen weights are not those", REFERENCE: "the reference's weights are not those"}


def require_same_weights(manifest: Manifest, weights: dict[str, str], allowed: Sequence[str]) -> None:
    """Raises `UserError` where a checkpoint rests on other weights than `weights`, digests by the settings that name
    them; `allowed`: settings in which they may differ."""
    for key, held in manifest.weights.items():
        if weights.get(key, held) != held and key not in allowed:
            what = _RESTS_ON.get(key, "what scores the rollouts is not what")
            raise UserError(
                f"{key}: {what} that the run began with (step {manifest.step} was saved with "
                f"others); restore them, choose another name=..., or continue with 'resume.allow_changes=[{key}]'"
            )


def load(engine: Engine, checkpoints: Checkpoints, manifest: Manifest) -> None:
    """Fill the engine with a checkpoint. Raises `UserError` where it is one of another network, or its files hold
    something else."""
    pieces = engine.pieces()

    def fill() -> None:
        with _opened(checkpoints, manifest) as stored:
            for piece in pieces:
                stored.fill(piece.name, piece.start, {part: getattr(piece, part) for part in _PARTS})

    patiently(fill)
    engine.filled(manifest.updates)


def load_carried(engine: Engine, checkpoints: Checkpoints, manifest: Manifest) -> Arrays:
    """What the source of steps carried, on all ranks; empty: nothing. The checkpoint is whole (see `choose`)."""
    found: Arrays = {}
    if engine.rank == 0 and _OF_SOURCE in manifest.files:
        found = safetensors.numpy.load(checkpoints.content(manifest, _OF_SOURCE))
    whole: Arrays = engine.broadcast(found)
    return whole


def load_weights(module: nn.Module, checkpoints: Checkpoints, manifest: Manifest) -> None:
    """Fill the trained parameters of `module`, in whichever dtype, with a checkpoint's weights, and without an engine.

    Raises `UserError` where it is one of another network, or its files hold something else.
    """

    def fill() -> None:
        with _opened(checkpoints, manifest) as stored, torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    weight = torch.empty(parameter.numel(), dtype=torch.float32)
                    stored.fill(name, 0, {"weight": weight})
                    parameter.copy_(weight.view_as(parameter))

    patiently(fill)


@contextmanager
def _opened(checkpoints: Checkpoints, manifest: Manifest) -> Iterator[_Stored]:
    folder = checkpoints.folder(manifest.step)
    with ExitStack() as stack:
        paths = [f"{folder}/{name}" for name in manifest.files if name.startswith(_OF_RANK)]
        yield _Stored(
            folder, {path: stack.enter_context(checkpoints.filesystem.open_input_file(path)) for path in paths}
        )


class _Stored:
    """All runs in the files of a checkpoint, by parameter."""

    def __init__(self, folder: str, files: dict[str, Any]) -> None:
        self._folder = folder
        self._runs: dict[str, dict[int, dict[str, tuple[Any, Vector]]]] = {}
        for path, file in files.items():
            try:
                for key, vector in read_header(file).items():
                    where, _, part = key.rpartition("/")
                    name, _, start = where.rpartition("@")
                    self._runs.setdefault(name, {}).setdefault(int(start), {})[part] = (file, vector)
            except ValueError as error:
                raise UserError(f"{path}: {error}") from None

    def fill(self, name: str, begin: int, targets: dict[str, Tensor]) -> None:
        """Fill `targets`, by part, with the elements of a parameter from `begin` on. Raises `UserError` where some are
        not there, weights and moments."""
        elements = len(targets["weight"])
        filled = 0
        for start, parts in self._runs.get(name, {}).items():
            if {*parts} != {*_PARTS} or len({vector.elements for _, vector in parts.values()}) != 1:
                continue
            first, last = max(start, begin), min(start + parts["weight"][1].elements, begin + elements)
            if first >= last:
                continue
            filled += last - first
            for part, target in targets.items():
                file, vector = parts[part]
                read_into(target[first - begin : last - begin], file, vector, first - start)
        if filled != elements:
            raise UserError(f"{self._folder}: does not hold elements {begin} to {begin + elements} of {name}")
