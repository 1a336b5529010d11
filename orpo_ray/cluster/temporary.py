"""Folders in this machine's temporary space that nobody else can enter, and that do not outlive those who use them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from orpo_ray.errors import UserError

_PREFIX, _LOCK = "orpo-ray-", ".lock"
_LONGEST = 21
"""Characters of the space's own path, for Ray's sockets lie deep in such a folder: a socket's path may have 107."""


def make_folder() -> tuple[Path, int]:
    """A new folder, and a descriptor: it is in use for as long as a process holds that open. What is left of folders
    that are not, of processes that were killed, is removed.

    In `RAY_TMPDIR` or the system's temporary folder. Raises `UserError` where the first is too long or not there.
    """
    place = _place()
    _remove_leftovers(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; RAY_TMPDIR names another folder for temporary files") from None
    new = folder / f"{_LOCK}.new"
    lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)  # held before others can see it
    return folder, lock


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    asked = os.environ.get("RAY_TMPDIR")
    if asked and len(asked) > _LONGEST:
        raise UserError(f"RAY_TMPDIR={asked}: is longer than {_LONGEST} characters, too long for Ray's sockets in it")
    usual = asked or tempfile.gettempdir()
    return Path(usual if len(usual) <= _LONGEST else "/tmp")


def _remove_leftovers(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another's, none of ours, or removed meanwhile
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid() and not folder.is_symlink():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_folder(folder)
            finally:
                os.close(lock)
