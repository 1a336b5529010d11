"""One driver at a time on a folder, told by a file in it: between hosts too, and with no hand's work after a kill.

Not `fcntl.flock`: on shared filesystems it may hold for one client only (NFS with `nolock`, Lustre with `localflock`),
be missing (FUSE), or outlive its holder by a server's lease. A file that its holder touches every few seconds needs
nothing but `O_EXCL`, `rename` and modification times, which all of them have.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orpo_ray.alive import pids_of, started
from orpo_ray.beside import beside
from orpo_ray.errors import UserError
from orpo_ray.parsing import member, object_from_json
from orpo_ray.terminal import Console
from orpo_ray.visible import say

LOCK = "driver.lock"

_BEAT = 5.0  # seconds between two touches
_STILL = 60.0  # seconds without one, after which a driver that cannot be seen from here is dead
_LOOK = 1.0  # seconds between two looks at another's lock
_SETTLE = 0.5  # seconds after which others that found the same dead driver's lock are done with it
_lost: set[Path] = set()
"""Folders of this process that another driver has taken over."""


@dataclass(frozen=True)
class _Held:
    """Another driver's lock, as it is found."""

    text: str
    beat: int
    """Modification time in ns, by the filesystem's clock."""

    @property
    def holder(self) -> dict[str, Any]:
        """Empty where its holder has not come to writing it, or something else was written there."""
        try:
            found = object_from_json(self.text)
            member(found, "pid", int)
        except ValueError:
            return {}
        return found


_OF_A_JOB = "working_dir_files"
"""The folder of a node where Ray unpacks the working directories of jobs."""


@contextmanager
def only_driver(folder: Path, console: Console, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder`, made where it is missing, while the body runs.

    Raises `UserError` where another driver holds it; with `wait`, waits until that one has gone. A dead one's lock does
    not count: at once where its process can be looked up, else after it has been still for a minute. A driver that
    finds its folder taken by another, since it was itself stopped for so long, is told to end by SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _OF_A_JOB in folder.parts:
        console.say(
            f"{folder.name}: storage.path is in this job's own copy of its working directory, which goes with its "
            "node: only a copy in storage.mirror outlives that, or storage.path=/a/shared/folder"
        )
    lock = folder / LOCK
    own = _described()
    _acquire(lock, own, console, wait)
    try:
        with beside(partial(_beat, lock, own)):
            yield
    finally:
        with suppress(OSError):
            if _look(lock).text == own:
                lock.unlink()


def is_lost(folder: Path) -> bool:
    """Whether another driver has taken over a `folder` that this one held."""
    return folder in _lost


def has_driver(folder: Path) -> bool | None:
    """Whether a driver is at work on `folder`; None: that cannot be told from here, as its process is elsewhere."""
    try:
        held = _look(folder / LOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return _runs(held)


def _described() -> str:
    pid = os.getpid()
    return json.dumps({
        "host": socket.gethostname(), "pid": pid, "started": started(pid), "pids_of": pids_of(),
        "id": uuid.uuid4().hex,
    })  # fmt: skip


def _look(lock: Path) -> _Held:
    """Opening a file, unlike asking for its times, makes an NFS client forget what it knew of it."""
    with lock.open(encoding="utf-8", errors="replace") as file:
        return _Held(file.read(), os.fstat(file.fileno()).st_mtime_ns)


def _acquire(lock: Path, own: str, console: Console, wait: bool) -> None:
    first: _Held | None = None
    told = False
    probe = lock.with_name(f".{LOCK}.{uuid.uuid4().hex}")
    try:
        while True:
            try:
                with lock.open("x", encoding="utf-8") as file:
                    file.write(own)
                if not any(lock.parent.glob(f".{LOCK}.*")):  # probes: nobody else has looked at a lock here
                    return
                time.sleep(_SETTLE)
            except FileExistsError:
                pass
            probe.touch()
            try:
                held = _look(lock)
            except FileNotFoundError:
                continue
            if held.text == own:
                return
            if first is None or first.text != held.text:
                first, told = held, False
            alive = _is_alive(held, first, probe.stat().st_mtime_ns)
            if alive is False:
                _remove(lock, held)
                continue
            who = f"another driver (host {held.holder.get('host', '?')}, process {held.holder.get('pid', '?')})"
            if alive and not wait:
                raise UserError(
                    f"{lock.parent}: {who} is at work on it; wait until it is done, stop it, or choose another name=..."
                )
            if not told:
                console.say(f"{lock.parent}: {who} may be at work on it; waiting to see")
                told = True
            time.sleep(_LOOK)
    finally:
        probe.unlink(missing_ok=True)


def _is_alive(held: _Held, first: _Held, now: int) -> bool | None:
    """Whether the holder is; None: wait and see. `first`: its lock as first seen. `now`: ns, by the same clock."""
    if (runs := _runs(held)) is not None:
        return runs
    if held.beat != first.beat:
        return True
    return False if now - held.beat > _STILL * 1e9 else None


def _runs(held: _Held) -> bool | None:
    """Whether the holder's process does; None: it cannot be looked up from here."""
    holder, here = held.holder, pids_of()
    if here is None or holder.get("pids_of") != here:
        return None
    return bool(started(holder["pid"]) == holder.get("started"))


def _remove(lock: Path, dead: _Held) -> None:
    """Of several that do this at once, one moves the dead one's lock; the others put back what that one made."""
    aside = lock.with_name(f".{LOCK}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        lock.rename(aside)
        moved = _look(aside).text
        aside.unlink()
        if moved != dead.text:
            with suppress(FileExistsError), lock.open("x", encoding="utf-8") as file:
                file.write(moved)


def _beat(lock: Path, own: str, over: threading.Event) -> None:
    while not over.wait(_BEAT):
        with suppress(OSError):  # storage that fails for a while stops no run
            with lock.open(encoding="utf-8", errors="replace") as file:
                if file.read() in (own, ""):  # or it is being put back
                    os.utime(file.fileno())
                    continue
            say(f"{lock.parent}: another driver has taken it over; this one ends", error=True)
            _lost.add(lock.parent)
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored where a shell runs it behind
            return
