"""A process that has imported what workers need, and becomes one at every request.

A worker's imports (torch, transformers, DeepSpeed, Ray Train) take longer than all else before its first step; a fork
of a process that has them takes milliseconds. The server imports and does nothing else, so a worker begins in the state
of a fresh process: `tests/integration/test_fork_server.py` holds the same bits.

Ray's extension module reads the job's number when it is loaded, and draws ids from a generator of its own. So what
needs Ray is imported at the first request, a server is of one job, and that generator is not touched before a fork.

It listens on a socket in a folder that only this user can enter, and ends with the process that started it. A cluster
of `head.py` starts workers by `setup_worker.py`, which asks here.

    python -m orpo_ray.cluster.fork_server LISTENER LIFELINE FOLDER FIRST THEN LATER

starts one that is no copy of its parent; by descriptors, and with lists of modules joined by commas.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orpo_ray.cluster.allocator import ENVIRONMENT, keep_freed_memory
from orpo_ray.cluster.temporary import make_folder, remove_folder

_OF_A_JOB = ("RAY_JOB_ID", "RAY_RAYLET_PID")  # what Ray's extension module reads when it is loaded
_MOST_BYTES = 1 << 24  # of a request
_SECONDS_TO_ASK = 10.0
_SECONDS_OF_QUIET = 4.0


class ForkServer:
    """A server, as the process that starts it sees it."""

    def __init__(self, first: Sequence[str], then: Sequence[str], later: Sequence[str], *, copy: bool) -> None:
        """Imports the modules `first` at once, `then` those that need Ray, when the first worker is wanted, and `later`
        more of them, when none has been wanted for a while.

        `copy`: it is forked, and has what this process has imported. This process must have no other Python thread
        then, must not have computed anything by torch nor imported Ray.
        """
        self._folder, lock = make_folder()
        reading, self._lifeline = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(64)
            if copy:
                self._pid = os.fork()
                if self._pid == 0:
                    _close_all_but(listener.fileno(), reading, lock)
                    _live(listener, reading, self._folder, first, then, later)
            else:
                passed = (listener.fileno(), reading)
                words = [*map(str, passed), str(self._folder), *map(",".join, (first, then, later))]
                command = [sys.executable, "-m", "orpo_ray.cluster.fork_server", *words]
                self._pid = subprocess.Popen(command, pass_fds=(*passed, lock), env=os.environ | ENVIRONMENT).pid
        os.close(reading)
        os.close(lock)

    @property
    def path(self) -> str:
        """Of its socket."""
        return str(self._folder / "socket")

    def stop(self) -> None:
        """End it; workers that it has started go on."""
        os.close(self._lifeline)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _close_all_but(*kept: int) -> None:
    """Close files of the process that this one is a copy of: who waits for the end of one would wait for a worker."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # the listing's own
                os.close(descriptor)


def _live(listener: socket.socket, lifeline: int, folder: Path, *modules: Sequence[str]) -> None:
    """The life of a server, and of the workers that it becomes; never returns."""
    server, code = os.getpid(), 1
    try:
        with suppress(PermissionError):  # leads a session already
            os.setsid()  # Ctrl-C in a terminal is for the process that started this one
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which may be sent to all processes of a job
        worker = _Server(listener, lifeline, *modules).run()
        if worker is not None:
            worker.become()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        if os.getpid() == server:
            remove_folder(folder)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Worker:
    """A forked process on its way to be a worker."""

    def __init__(self, request: dict[str, Any], files: list[int]) -> None:
        self._request, self._files = request, files

    def become(self) -> None:
        """Run the script as a fresh interpreter would have run it."""
        request = self._request
        for number, file in enumerate(self._files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        os.umask(request["umask"])
        os.setpgid(0, 0)  # with what it starts it is ended as one
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(request["oom_score_adj"], encoding="ascii")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
        # What a fresh process finds out or draws anew. torch's generator begins with the same seed in each.
        tempfile.tempdir = None
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        keep_freed_memory()
        script, *_ = sys.argv = request["command"]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


class _Server:
    def __init__(
        self,
        listener: socket.socket,
        lifeline: int,
        first: Sequence[str],
        then: Sequence[str],
        later: Sequence[str],
    ) -> None:
        self._listener = listener
        self._lifeline = lifeline
        self._first, self._then, self._later = first, then, list(later)
        self._job: list[str | None] | None = None
        self._apart = False
        """Whether ids that two workers draw differ."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(lifeline, selectors.EVENT_READ)
        self._workers: dict[int, tuple[socket.socket, int]] = {}
        """By process descriptor: who has asked for the worker, and its process id."""

    def run(self) -> _Worker | None:
        """None when this server is to end; in a forked process the worker that it is."""
        self._have(self._first)
        while True:
            waits = self._job is not None and bool(self._later)
            ready = self._selector.select(_SECONDS_OF_QUIET if waits else None)
            if not ready:
                self._have_beside_ray([self._later.pop(0)])
            for key, _ in ready:
                if self._selector.get_map().get(key.fd) is not key:
                    continue  # closed on behalf of one before, and maybe open again as another's
                if key.fd == self._lifeline:
                    return None
                if key.fileobj is self._listener:
                    worker = self._answer()
                    if worker is not None:
                        return worker
                elif key.fd in self._workers:
                    self._bury(key.fd)
                else:
                    self._end_of(key.fd)

    def _have(self, modules: Sequence[str]) -> None:
        for module in modules:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection in a worker leaves the pages that it shares as they are

    def _have_beside_ray(self, modules: Sequence[str]) -> None:
        """Import what needs Ray, whose generator of ids must not have been begun before a fork: all workers would draw
        the same ones. Where it has been, no worker is forked any more."""
        import ray.actor

        own = ray.actor.ActorClassID
        ray.actor.ActorClassID = _ActorClassID  # of every class that a module declares an actor
        try:
            self._have(modules)
        finally:
            ray.actor.ActorClassID = own
        self._apart = _draw_apart()

    def _answer(self) -> _Worker | None:
        """Fork a worker for whoever asks, unless it is one of another job."""
        asking, _ = self._listener.accept()
        try:
            request, files = _request(asking)
        except (OSError, ValueError):
            asking.close()
            return None
        pid = self._forked(request["environment"])
        if pid == 0:
            self._selector.close()
            for descriptor, (other, _) in self._workers.items():
                os.close(descriptor)
                other.close()
            self._listener.close()
            os.close(self._lifeline)
            asking.close()
            return _Worker(request, files)
        for file in files:
            os.close(file)
        if pid is None:
            asking.close()
            return None
        descriptor = os.pidfd_open(pid)
        self._workers[descriptor] = asking, pid
        self._selector.register(descriptor, selectors.EVENT_READ)
        self._selector.register(asking, selectors.EVENT_READ)
        with suppress(OSError):
            asking.sendall(b"+")
        return None

    def _forked(self, environment: dict[str, str]) -> int | None:
        """`os.fork`'s answer; None: the worker is none of this server's job."""
        job = [environment.get(name) for name in _OF_A_JOB]
        if self._job is None:
            self._job = job
            os.environ.update({name: value for name, value in environment.items() if name.startswith("RAY_")})
            self._have_beside_ray(self._then)
        return os.fork() if job == self._job and self._apart else None

    def _bury(self, descriptor: int) -> None:
        """Tell who asked for a worker how it has ended."""
        asking, pid = self._workers.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if asking.fileno() in self._selector.get_map():
            self._selector.unregister(asking)
            with suppress(OSError):
                asking.sendall(str(code if code >= 0 else 128 - code).encode())
        asking.close()

    def _end_of(self, asking: int) -> None:
        """Who asked is gone: Ray has ended it. Its worker, and what that has started, go too."""
        self._selector.unregister(asking)
        for other, pid in self._workers.values():
            if other.fileno() == asking:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


class _ActorClassID:
    """Draws ids as Ray's class of that name does, but from the system's randomness."""

    @staticmethod
    def from_random() -> Any:
        from ray._raylet import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def _draw_apart() -> bool:
    """Whether two forks of this process draw different ids of Ray."""
    from ray._raylet import JobID, PlacementGroupID

    drawn = []
    for _ in range(2):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, PlacementGroupID.of(JobID.from_int(1)).binary())
            os._exit(0)
        os.close(writing)
        drawn.append(os.read(reading, 100))
        os.close(reading)
        os.waitpid(pid, 0)
    return drawn[0] != drawn[1]


def _request(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and its standard files. Raises `ValueError` or `OSError` where that does not come whole."""
    asking.settimeout(_SECONDS_TO_ASK)
    files: list[int] = socket.recv_fds(asking, 1, 3)[1]
    text = b""
    while not text.endswith(b"\n"):
        if not (part := asking.recv(1 << 16)) or len(text) > _MOST_BYTES:
            raise ValueError("no whole request")
        text += part
    request: dict[str, Any] = json.loads(text)
    return request, files


if __name__ == "__main__":
    _listener, _lifeline, _folder, *_modules = sys.argv[1:]
    _lists = [[name for name in names.split(",") if name] for names in _modules]
    _live(socket.socket(fileno=int(_listener)), int(_lifeline), Path(_folder), *_lists)
