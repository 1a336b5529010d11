"""A limit to the time that foreign code may compute."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TimeOut(BaseException):
    """The time is over. No `Exception`: the code that takes too long may catch those, as jinja2's compiler does."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TimeOut` in the body once the process has computed for `seconds` more.

    By a signal, which Python delivers to the main thread alone: in another there is no limit. It counts time of the
    processor, so that a busy machine changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _time_is_over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _time_is_over(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeOut
