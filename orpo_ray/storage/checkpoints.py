"""The folder of a run's checkpoints, on any filesystem: which there are, which are whole, which are kept.

`step-00000100/` holds one file of each rank and `manifest.json`, written last: a folder without a manifest was never
finished, and one whose files differ from it in size or SHA-256 is damaged.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from orpo_ray.errors import UserError
from orpo_ray.masking import masked
from orpo_ray.parsing import NUMBER, member, object_from_json
from orpo_ray.storage.checkpoint_files import FileSum, sum_up
from orpo_ray.storage.patience import STORAGE_ERRORS, patiently, said

_FORMAT = 1
_COST_ONCE = "eval_loss"  # as it was called when there was no other
_MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a folder or URL, and the path in it.

    Raises `UserError` where nothing serves it, or its storage cannot be asked (S3: for the bucket's region).
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), location
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(location)
        return found
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # not one of pyarrow's own, or not as it has them
        refused = error
    except OSError as error:
        raise UserError(f"storage: {masked(location)}: cannot be reached: {said(error)}") from None
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        own = "nrecognized filesystem" in str(refused)
        raise UserError(f"storage: {masked(location)}: {said(error if own else refused)}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is."""

    step: int
    state: dict[str, Any]
    """The loop's."""
    updates: int
    """AdamW's count."""
    config: str
    """Digest of the settings that decide the run."""
    data: str
    """Digest of the pairs."""
    cost: float | None
    """`train.keep_by` at this step, its sign turned where higher is better; None: it was not evaluated, or is not
    finite."""
    files: dict[str, FileSum]
    weights: dict[str, str] = field(default_factory=dict)
    """Digests of weights that the run rests on and its checkpoints do not hold, by the setting that names them."""

    def to_json(self) -> str:
        files = {name: total._asdict() for name, total in self.files.items()}
        return json.dumps({"format": _FORMAT, **vars(self), "files": files}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Raises `ValueError`, naming the key, for anything else than what `to_json` writes."""
        found = object_from_json(text)
        if member(found, "format", int) != _FORMAT:
            raise ValueError("written by another version")
        return cls(
            step=member(found, "step", int),
            state=member(found, "state", dict),
            updates=member(found, "updates", int),
            config=member(found, "config", str),
            data=member(found, "data", str),
            cost=member(found, "cost" if "cost" in found else _COST_ONCE, *NUMBER, type(None)),
            files={name: _file_sum(name, total) for name, total in member(found, "files", dict).items()},
            weights=_weights(found),
        )


def _weights(found: dict[str, Any]) -> dict[str, str]:
    held = member({"weights": {}, **found}, "weights", dict)  # those of runs that began earlier have none
    try:
        return {name: member(held, name, str) for name in held}
    except ValueError as error:
        raise ValueError(f"weights: {error}") from None


def _metric(manifest: Manifest) -> str:
    return str(manifest.state.get("best_by", _COST_ONCE))


def _file_sum(name: str, found: Any) -> FileSum:
    if not _FILE.fullmatch(name):
        raise ValueError(f"files: {name!r:.80} is no file of a checkpoint")
    if not isinstance(found, dict):
        raise ValueError(f"files: {name} should have a size and a sha256")
    return FileSum(member(found, "size", int), member(found, "sha256", str))


class Checkpoints:
    """A run's checkpoints. Storage errors are those of `STORAGE_ERRORS`, as pyarrow raises them; whatever only reads is
    asked again before it raises one."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.filesystem, self._path = open_filesystem(location)

    def folder(self, step: int) -> str:
        return f"{self._path}/step-{step:08d}"

    def steps(self) -> list[int]:
        """Of all folders, finished or not, newest first."""
        selector = pafs.FileSelector(self._path, allow_not_found=True)
        entries = patiently(lambda: self.filesystem.get_file_info(selector))
        found = (_FOLDER.fullmatch(entry.base_name) for entry in entries if entry.type == pafs.FileType.Directory)
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def manifest(self, step: int) -> Manifest | None:
        """None: never finished, or removed meanwhile. Raises `ValueError` where there is one that says nothing."""
        text = patiently(partial(self._text, f"{self.folder(step)}/{_MANIFEST}"))
        if text is None:
            return None
        found = Manifest.from_json(text)
        if found.step != step:
            raise ValueError(f"step is {found.step}, in the folder of step {step}")
        return found

    def _text(self, path: str) -> bytes | None:
        """None: there is no such file."""
        try:
            with self.filesystem.open_input_stream(path) as file:
                text: bytes = file.read()
        except FileNotFoundError:  # it may be there by now
            return None
        except OSError:  # S3's for an object that goes between opening and reading is no FileNotFoundError
            if self.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
                return None
            raise
        return text

    def content(self, manifest: Manifest, name: str) -> bytes:
        """Of a small file of a checkpoint that is whole (see `damage`)."""
        return patiently(partial(self._whole, f"{self.folder(manifest.step)}/{name}", manifest.files[name].size))

    def _whole(self, path: str, size: int) -> bytes:
        with self.filesystem.open_input_stream(path) as file:
            found: bytes = file.read()
        if len(found) != size:
            raise OSError(f"{path}: {len(found)} of {size} bytes came")
        return found

    def finished(self) -> list[Manifest]:
        """Newest first; those whose manifest is not readable left out."""
        manifests = []
        for step in self.steps():
            try:
                manifest = self.manifest(step)
            except ValueError:
                continue
            if manifest is not None:
                manifests.append(manifest)
        return manifests

    def open(self, step: int) -> None:
        """Begin the folder of a step anew."""
        self.discard(step)
        self.filesystem.create_dir(self.folder(step), recursive=True)

    def commit(self, manifest: Manifest) -> None:
        """Make a checkpoint whose files are all written one to continue from."""
        path = f"{self.folder(manifest.step)}/{_MANIFEST}"
        new = f"{path}.{uuid.uuid4().hex}"
        with self.filesystem.open_output_stream(new) as file:
            file.write(manifest.to_json().encode())
        self.filesystem.move(new, path)

    def discard(self, step: int) -> None:
        """Remove a checkpoint, its manifest first: what is left of it, if this is interrupted, is no checkpoint."""
        folder = self.folder(step)
        for path, remove in (
            (f"{folder}/{_MANIFEST}", self.filesystem.delete_file),
            (folder, self.filesystem.delete_dir),
        ):
            if self.filesystem.get_file_info(path).type != pafs.FileType.NotFound:
                remove(path)

    def retain(self, newest: int, best: int) -> None:
        """Keep the `newest` checkpoints, and the `best` of lowest cost; remove the others, unfinished ones too."""
        finished = self.finished()
        by = _metric(finished[0]) if finished else ""  # costs by another metric are of before a change
        costly = [m for m in finished if m.cost is not None and _metric(m) == by]
        evaluated = sorted(costly, key=lambda m: (m.cost, m.step))
        kept = {manifest.step for manifest in [*finished[:newest], *evaluated[:best]]}
        for step in self.steps():
            if step not in kept:
                self.discard(step)

    def _sum(self, path: str) -> FileSum | None:
        """None: there is no such file."""
        try:
            with self.filesystem.open_input_stream(path) as file:
                return sum_up(file)
        except FileNotFoundError:
            return None

    def damage(self, manifest: Manifest, names: Iterable[str]) -> str | None:
        """The first of these files that is not as the manifest says, and why; None: all are."""
        for name in names:
            path = f"{self.folder(manifest.step)}/{name}"
            try:
                # An answer that broke off must not cost a checkpoint; one that is not there is not waited for.
                found = patiently(partial(self._sum, path))
            except STORAGE_ERRORS as error:
                return f"{name} cannot be read ({error})"
            if found is None:
                return f"{name} cannot be read (it is not there)"
            if found != manifest.files[name]:
                wrong = "size" if found.size != manifest.files[name].size else "content"
                return f"{name} has another {wrong} than its manifest says"
        return None
