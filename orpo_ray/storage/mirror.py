"""A run folder's copy on object storage: kept while a command works on the folder; on another machine it becomes one.

The copy is the folder, file by file, so `report.html` and `model/` can be used where they are. Two files say what is
whole: `mirror.json`, which names the last command that worked on it, and a model's `training_step.json`, which is
removed before its other files are replaced and written after them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import pyarrow.fs as pafs

from orpo_ray.atomic import new_folder
from orpo_ray.beside import beside
from orpo_ray.config import StorageConfig
from orpo_ray.errors import UserError
from orpo_ray.masking import masked
from orpo_ray.parsing import member, object_from_json, read_member
from orpo_ray.storage.checkpoints import open_filesystem
from orpo_ray.storage.driver_lock import LOCK
from orpo_ray.storage.patience import STORAGE_ERRORS, patiently, said
from orpo_ray.storage.run_folder import STEP_OF_MODEL, write_atomically
from orpo_ray.terminal import Console

_SESSION = "mirror.json"
_LAST = (STEP_OF_MODEL, "summary.json", "winrates.json", "sweep.json")  # each says that what it speaks of is there
_NOT_COPIED = {"checkpoints", "ray", "__pycache__"}
_KEPT = re.compile(r"(?:model|adapter)(|-last|-step-\d+)")
"""Folders of a model, or of its adapters."""
_SECONDS_BETWEEN_LOOKS = 15.0
_SHARE = 10  # of the time, in which it copies: at most one tenth
_TRIES_AT_THE_END = 5

_Stamp = tuple[int, int]
"""Size and modification time (ns) of a file."""
_NO_STAMP = (-1, -1)


@contextmanager
def mirrored(storage: StorageConfig, name: str, console: Console | None = None) -> Iterator[None]:
    """While the body works on the folder of `name`, keep its copy in `storage.mirror`; without one, do nothing.

    Where there is no such folder on this machine but a copy of it, that becomes the folder first. Raises `UserError`
    where the copy is of another folder, cannot be read, or cannot be brought up to date in the end.
    """
    location = storage.copy_of(name)
    if location is None:
        yield
        return
    console = console or Console(stderr=True)
    mirror = Mirror(storage.run_dir(name), location)
    mirror.restore(console)
    mirror.begin()
    troubled = threading.Event()

    def keep(over: threading.Event) -> None:
        pause = _SECONDS_BETWEEN_LOOKS
        while not over.wait(pause):
            started = time.monotonic()
            try:
                mirror.update()
                troubled.clear()
            except STORAGE_ERRORS as error:
                if not troubled.is_set():
                    console.say(f"{mirror.name}: cannot be written, and is tried again: {said(error)}")
                troubled.set()
            except UserError as error:
                console.say(str(error))
                return
            pause = max(_SECONDS_BETWEEN_LOOKS, _SHARE * (time.monotonic() - started))

    try:
        with beside(keep):
            yield
    except BaseException:
        with suppress(UserError):  # what ended the command is to be told
            mirror.complete()
        raise
    mirror.complete()


def fetched(storage: StorageConfig, name: str, console: Console) -> None:
    """As `mirrored` begins: where there is no folder of `name` but a copy, make it. For who writes there before that.

    Raises `UserError` where the copy cannot be read.
    """
    if (location := storage.copy_of(name)) is not None:
        Mirror(storage.run_dir(name), location).restore(console)


class Mirror:
    """One folder and its copy. Storage errors of `update` are `OSError`, as pyarrow raises them."""

    def __init__(self, folder: Path, location: str) -> None:
        self.folder = folder
        self.name = masked(location)
        self._filesystem, self._path = open_filesystem(location)
        self._session = uuid.uuid4().hex
        self._copied: dict[str, _Stamp] = {}

    def restore(self, console: Console) -> bool:
        """Where there is no folder but a copy: make the folder from it, whole or not at all; returns whether it was."""
        if self.folder.exists():
            return False
        try:
            held = patiently(self._held_session)
            if held is None:
                return False
            with new_folder(self.folder) as arriving:
                self._fetch(arriving, held, console)
        except STORAGE_ERRORS as error:
            raise UserError(f"{self.name}: cannot be read: {said(error)}") from None
        return True

    def _fetch(self, arriving: Path, held: str, console: Console) -> None:
        """Fill `arriving` with the copy, which the session `held` has last worked on."""
        names = patiently(self._there)
        size = sum(size for size, _ in names.values()) / 2**20
        console.say(f"{self.folder}: fetching its copy from {self.name}: {len(names)} files, {size:,.0f} MiB")
        for name, (_, written) in names.items():
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            patiently(partial(self._read, name, arriving / name))
            os.utime(arriving / name, ns=(written, written))
        (arriving / _SESSION).write_text(_session_text(held), encoding="utf-8")
        for name in names:
            if (marker := _marker(name)) is not None and marker not in names:
                (arriving / name).unlink()  # of a model whose machine was lost while it was copied

    def _read(self, name: str, to: Path) -> None:
        with self._filesystem.open_input_stream(f"{self._path}/{name}") as source, to.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def begin(self) -> None:
        """Claim the copy for this command. Raises `UserError` where another machine's has gone on with it since."""
        try:
            if patiently(self._held_session) is not None:
                patiently(self._make_sure_of_the_copy)
            self.folder.mkdir(parents=True, exist_ok=True)
            patiently(lambda: self._write(_SESSION, BytesIO(_session_text(self._session).encode())))
            write_atomically(self.folder / _SESSION, _session_text(self._session))
            there, here = patiently(self._there), self._here()
        except STORAGE_ERRORS as error:
            raise UserError(f"{self.name}: cannot be used: {said(error)}") from None
        for name, (size, written) in there.items():
            stamp = here.get(name, _NO_STAMP)
            self._copied[name] = stamp if size == stamp[0] and written >= stamp[1] else _NO_STAMP

    def update(self) -> None:
        """Copy what has changed, and remove what is gone. Raises `UserError` where another machine has gone on."""
        self._make_sure_of_the_copy()
        here = self._here()
        changed = {name for name, stamp in here.items() if self._copied.get(name) != stamp}
        gone = {name for name in self._copied if name not in here}
        for marker in {marker for name in changed | gone if (marker := _marker(name)) is not None}:
            self._remove(marker)
            if marker in here:
                changed.add(marker)
        for name in sorted(gone):
            self._remove(name)
        for name in sorted(changed, key=lambda name: (_rank(name), name)):
            with suppress(FileNotFoundError):  # gone since
                stamp = _stamp(self.folder / name)
                if _rank(name) and stamp != here[name]:
                    continue  # it speaks of what is newer than what was copied: the next time
                with (self.folder / name).open("rb") as file:
                    self._write(name, file)
                self._copied[name] = stamp

    def complete(self) -> None:
        """Bring the copy up to date, trying again where storage fails. Raises `UserError` where it goes on failing."""
        try:
            patiently(self.update, _TRIES_AT_THE_END)
        except STORAGE_ERRORS as error:
            raise UserError(
                f"{self.name}: the copy of {self.folder} is not complete: {said(error)}; the same command completes it"
            ) from None

    def _make_sure_of_the_copy(self) -> None:
        """Raises `UserError` where it is of another folder than this one; another driver on this one is none."""
        own = self.folder / _SESSION
        known = read_member(own, "session", str) if own.is_file() else None
        if self._held_session() != known:
            raise UserError(
                f"{self.name}: is the copy of another folder than {self.folder}, or another machine has gone on with "
                "it; remove this folder to go on from the copy, or choose another name=... or storage.mirror=..."
            )

    def _held_session(self) -> str | None:
        """Of the last command that worked on the copy; None: there is no copy."""
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{_SESSION}") as file:
                held = file.read()
        except FileNotFoundError:
            return None
        try:
            return str(member(object_from_json(held), "session", str))
        except ValueError:
            raise UserError(f"{self.name}/{_SESSION}: was changed by something else; remove it") from None

    def _there(self) -> dict[str, _Stamp]:
        selector = pafs.FileSelector(self._path, allow_not_found=True, recursive=True)
        found = {}
        for entry in self._filesystem.get_file_info(selector):
            name = entry.path.removeprefix(self._path).lstrip("/")
            if entry.type == pafs.FileType.File and not _left_out(name):
                found[name] = entry.size, entry.mtime_ns or 0
        return found

    def _here(self) -> dict[str, _Stamp]:
        found = {}
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in _NOT_COPIED and not name.startswith(".")]
            for file in files:
                name = (Path(folder) / file).relative_to(self.folder).as_posix()
                if not _left_out(name):
                    with suppress(FileNotFoundError):
                        found[name] = _stamp(self.folder / name)
        return found

    def _write(self, name: str, content: IO[bytes]) -> None:
        path = f"{self._path}/{name}"
        if isinstance(self._filesystem, pafs.LocalFileSystem):
            self._filesystem.create_dir(os.path.dirname(path), recursive=True)
        with self._filesystem.open_output_stream(path) as target:
            shutil.copyfileobj(content, target, 1 << 20)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")
        self._copied.pop(name, None)


def _session_text(session: str) -> str:
    return json.dumps({"session": session}) + "\n"


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _left_out(name: str) -> bool:
    """Locks, checkpoints (which are there themselves), Ray's own, and what is being written."""
    *folders, file = name.split("/")
    return file in (LOCK, _SESSION) or any(part in _NOT_COPIED or part.startswith(".") for part in [*folders, file])


def _marker(name: str) -> str | None:
    """What says that the model is whole which this file belongs to."""
    for parent in Path(name).parents:
        if kept := _KEPT.fullmatch(parent.name):
            return (parent.parent / f"model{kept[1]}" / STEP_OF_MODEL).as_posix()
    return None


def _rank(name: str) -> int:
    """When a file is to be copied: after what it speaks of."""
    file = name.rpartition("/")[2]
    return _LAST.index(file) + 1 if file in _LAST else 0
