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
from contextlib import contextmanager
from functools import partial
from types import FrameType

from orpo_ray.telemetry.logs import log
from orpo_ray.terminal import Console
from orpo_ray.training.beside import beside

_LOOK = 0.2  # seconds between two looks; `ray job stop` kills what is still there after three
_PATIENCE = 300.0  # seconds that a checkpoint may take; whoever sends SIGTERM has a patience of their own
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
    """Rank 0's ear for a request: it asks in a thread, so that no step waits for the answer."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.heard = False
        self._steps = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        with beside(self._listen):
            yield

    def note_step(self) -> None:
        if not self._steps:
            self._steps = True
            self._request.note_step()

    def _listen(self, over: threading.Event) -> None:
        while not over.wait(_LOOK):
            try:
                self.heard = self._request.made
            except Exception as error:  # a GCS that is away for a while ends no training
                log("the wish to stop cannot be asked for", error=repr(error))
            if self.heard:
                return


@contextmanager
def saving_when_stopped(
    request: StopRequest, lost: Callable[[], bool], console: Console, name: str
) -> Iterator[Callable[[], bool]]:
    """While the body trains, answer the first SIGINT or SIGTERM by `request`, and a second one by KeyboardInterrupt.

    The first one is answered so, too, where there is nothing to save: before a step was trained, or where `lost` says
    that the folder is another driver's now. So is one whose checkpoint takes longer than five minutes. Gives a function
    that says whether a signal has come. Beside the main thread, which alone receives signals, it does nothing.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def answer(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    # A shell that runs a command behind has it ignore SIGINT.
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    answered = [each for each, handler in before.items() if each == signal.SIGTERM or handler != signal.SIG_IGN]
    for each in answered:
        signal.signal(each, answer)
    try:
        with beside(partial(_attend, asked, request, lost, console, name)):
            yield asked.is_set
    finally:
        for each in answered:
            signal.signal(each, before[each] or signal.SIG_DFL)
    request.forget()


def _attend(
    asked: threading.Event,
    request: StopRequest,
    lost: Callable[[], bool],
    console: Console,
    name: str,
    over: threading.Event,
) -> None:
    while not asked.is_set():
        if over.wait(_LOOK):
            return
    end = time.monotonic()
    try:
        if not lost() and request.has_trained:
            request.make()
            console.say(f"{name}: stopping: saving a checkpoint (Ctrl-C again to stop without)")
            end += _PATIENCE
            while not over.wait(_LOOK) and time.monotonic() < end:
                if request.saved:
                    end = min(end, time.monotonic() + _TO_END)
    finally:
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # as if it had come twice
