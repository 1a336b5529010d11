"""Files and folders that come into being whole: made beside their place, under a name of their own, then moved there.

Any number of processes may make the same at once, on any hosts that share the place. What a killed one leaves behind is
in nobody's way; a folder, which may be large, is removed when its neighbour is made the next time.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

from orpo_ray.alive import pids_of, started

_ABANDONED = 86_400.0  # seconds without a new entry after which nobody elsewhere is still filling a folder
_MAKER = re.compile(r"([0-9a-f]{16})-(\d+)-(\w+)-[0-9a-f]{8}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path beside `path` for the body to write a file to, which then takes `path`'s place."""
    new = _beside(path)
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` for the body to fill, which then becomes `path`. Where another process was first,
    its folder stays."""
    with _folder_beside(path) as new:
        yield new
        try:
            _open_as_the_umask_says(new)
            new.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def next_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` for the body to fill, which then takes the place of what is there. That is missing
    for a moment."""
    with _folder_beside(path) as new, _folder_beside(path) as aside:
        yield new
        _open_as_the_umask_says(new)
        if path.exists():
            path.rename(aside / path.name)
        new.rename(path)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = _beside(path)
    folder.mkdir(parents=True)
    try:
        _remove_leftovers(path, folder.stat().st_mtime)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_as_the_umask_says(folder: Path) -> None:
    """Give each file the mode of any that is made there: safetensors makes its own for their owner alone."""
    made = folder / f".{os.getpid()}"  # a process's umask cannot be asked for without changing it for all threads
    made.touch()
    mode = S_IMODE(made.stat().st_mode)
    made.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def _beside(path: Path) -> Path:
    pid = os.getpid()
    return path.with_name(f".{path.name}.{_machine()}-{pid}-{started(pid)}-{uuid.uuid4().hex[:8]}")


def _machine() -> str:
    """Names within what numbers of processes mean something; nobody's own where that cannot be told."""
    known = pids_of()
    return uuid.uuid4().hex[:16] if known is None else hashlib.blake2b(known.encode(), digest_size=8).hexdigest()


def _remove_leftovers(path: Path, now: float) -> None:
    """Remove what killed processes left of their work on `path`. `now`: by the clock of its filesystem."""
    begin, here = f".{path.name}.", _machine()
    for entry in path.parent.glob(f"{glob.escape(begin)}*"):
        maker = _MAKER.fullmatch(entry.name.removeprefix(begin))
        if maker is None:
            continue
        machine, pid, began = maker.groups()
        try:
            dead = started(int(pid)) != began if machine == here else now - entry.stat().st_mtime > _ABANDONED
        except FileNotFoundError:  # finished meanwhile
            continue
        if dead:
            shutil.rmtree(entry, ignore_errors=True)
