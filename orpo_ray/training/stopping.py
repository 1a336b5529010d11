"""Ctrl-C and SIGTERM: the workers save a checkpoint and end, and then the command does.

The wish travels by the key-value store of Ray's GCS, which every cluster has: a shared folder may show a new file only
after a minute (NFS).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from orpo_ray.beside import beside
from orpo_ray.terminal import Console

_LOOK = 0.2  # seconds between two looks; `ray job stop` kills what is still there after three
_PATIENCE = 300.0  # seconds that a checkpoint may take; whoever sends SIGTERM has a patience of their own
_ONE = 1.0  # seconds in which signals are one: `timeout`, and wrappers that pass them on, send it twice
_TO_END = 5.0  # seconds from the checkpoint to the end of Ray Train, which may wait for comparisons


class StopRequest:
    """A wish to stop what one command trains, under a name that it has drawn. For any process of its Ray cluster."""

    def __init__(self, name: str | None = None) -> None:
        self.name = uuid.uuid4().hex if name is None else name

    def make(self) -> None:
        self._put("asked")

    @property
    def made(self) -> bool:
        return self._has("asked")

    def note_step(self) -> None:
        """A worker has trained a step: from now on there is something to save."""
        self._put("trains")

    @property
    def has_trained(self) -> bool:
        return self._has("trains")

    def note_saved(self) -> None:
        """The workers have done what was wished for."""
        self._put("saved")

    @property
    def saved(self) -> bool:
        return self._has("saved")

    def forget(self) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._key(""), del_by_prefix=True)

    def _key(self, what: str) -> str:
        return f"orpo_ray/stop/{self.name}/{what}"

    def _put(self, what: str) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._key(what), b"1")

    def _has(self, what: str) -> bool:
        from ray.experimental import internal_kv

        return bool(internal_kv._internal_kv_exists(self._key(what)))


class Listener:
    """Rank 0's ear for a request, and its voice: in a thread, so that no step waits for an answer, or fails without."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.heard = False
        self.has_trained = False
        """To be set after the first step: then there is something to save."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        with beside(self._listen):
            yield

    def _listen(self, over: threading.Event) -> None:
        told = False
        while not over.wait(_LOOK) and not self.heard:
            with suppress(Exception):  # a GCS that is away for a while ends no training
                if self.has_trained and not told:
                    self._request.note_step()
                    told = True
                self.heard = self._request.made


class Stop:
    """What a command makes of the signals that it gets while its workers train."""

    def __init__(
        self, request: StopRequest, console: Console, name: str, lost: Callable[[], bool], several: bool
    ) -> None:
        self._request, self._console, self._name, self._lost, self._several = request, console, name, lost, several
        self._first: float | None = None
        """When the first signal came."""
        self._ends = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._first is not None

    def answer(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM. Raises `KeyboardInterrupt` at the second one."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif self._ends or now - self._first > _ONE:
            raise KeyboardInterrupt

    def attend(self, over: threading.Event) -> None:
        """Wait for a signal in a thread of its own, and see to what is to be done."""
        while not self.asked:
            if over.wait(_LOOK):
                return
        with suppress(Exception):  # a GCS that does not answer: nothing can be saved
            if not self._lost() and self._request.has_trained:
                self._request.make()
                self._console.say(f"{self._name}: stopping: saving a checkpoint (Ctrl-C again to stop without)")
                self._wait(over)
        if not over.is_set():
            self._ends = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _wait(self, over: threading.Event) -> None:
        end = time.monotonic() + _PATIENCE
        while not over.wait(_LOOK) and time.monotonic() < end:
            if not self._several and self._request.saved:
                end = min(end, time.monotonic() + _TO_END)


@contextmanager
def saving_when_stopped(
    request: StopRequest, console: Console, name: str, lost: Callable[[], bool], *, several: bool = False
) -> Iterator[Stop]:
    """While the body trains, answer the first SIGINT or SIGTERM by `request`, and a second one by KeyboardInterrupt.
    `several`: runs hear of it, and the first one that has saved is not the last.

    The first one is answered so, too, where there is nothing to save: before a step was trained, or where `lost` says
    that the folder is another driver's now. So is one whose checkpoint takes longer than five minutes. Beside the main
    thread, which alone receives signals, nothing is done.
    """
    stop = Stop(request, console, name, lost, several)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A shell that runs a command behind has it ignore SIGINT.
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    answered = [each for each, handler in before.items() if each == signal.SIGTERM or handler != signal.SIG_IGN]
    for each in answered:
        signal.signal(each, stop.answer)
    try:
        with beside(stop.attend):
            yield stop
    finally:
        for each in answered:
            signal.signal(each, before[each] or signal.SIG_DFL)
    request.forget()
