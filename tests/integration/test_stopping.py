"""What a command makes of SIGINT and SIGTERM while it trains: the wish goes through a real cluster."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from orpo_ray.terminal import Console
from orpo_ray.training import stopping
from orpo_ray.training.stopping import Listener, Stop, StopRequest, saving_when_stopped


@pytest.fixture
def request_to_stop(ray_cluster: None) -> StopRequest:
    return StopRequest()


def guarded(
    request: StopRequest, said: io.StringIO | None = None, *, lost: bool = False, several: bool = False
) -> AbstractContextManager[Stop]:
    return saving_when_stopped(request, Console(file=said or io.StringIO()), "run", lambda: lost, several=several)


def send(how: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), how)


def stay() -> None:
    """As a command that is asked to stop, and does not."""
    send()
    time.sleep(10)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_reaches_rank_0_and_the_second_ends_at_once(
    request_to_stop: StopRequest, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(stopping, "_ONE", 0.3)
    rank_0, said = Listener(StopRequest(request_to_stop.name)), io.StringIO()

    def train() -> None:
        with rank_0.listening(), guarded(request_to_stop, said) as stop:
            rank_0.has_trained = True
            wait_for(lambda: request_to_stop.has_trained)
            assert not stop.asked
            send(how)
            send(how)  # as `timeout` does
            wait_for(lambda: rank_0.heard)
            assert stop.asked
            assert said.getvalue() == "run: stopping: saving a checkpoint (Ctrl-C again to stop without)\n"
            time.sleep(0.5)
            send(how)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("why", ["no step yet", "another driver has the folder"])
def test_where_nothing_can_be_saved_the_first_one_ends(request_to_stop: StopRequest, why: str) -> None:
    if lost := why.startswith("another"):
        request_to_stop.note_step()
    said, began = io.StringIO(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), guarded(request_to_stop, said, lost=lost):
        stay()
    assert time.monotonic() - began < 5
    assert said.getvalue() == "" and not request_to_stop.made


@pytest.mark.parametrize("several", [False, True])
def test_it_does_not_wait_for_ever(
    request_to_stop: StopRequest, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for what Ray Train still does when the checkpoint is there; but for other trials of a sweep."""
    monkeypatch.setattr(stopping, "_PATIENCE", 3.0)
    monkeypatch.setattr(stopping, "_TO_END", 0.2)
    request_to_stop.note_step()
    request_to_stop.note_saved()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), guarded(request_to_stop, several=several):
        stay()
    assert (3 < time.monotonic() - began < 8) if several else (time.monotonic() - began < 3)


def test_what_ends_by_itself_leaves_nothing_behind(request_to_stop: StopRequest) -> None:
    with guarded(request_to_stop) as stop:
        request_to_stop.note_step()
        send()
        wait_for(lambda: request_to_stop.made)
    assert stop.asked
    assert not request_to_stop.made and not request_to_stop.has_trained


def test_a_command_that_a_shell_runs_behind_ignores_ctrl_c_still(request_to_stop: StopRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with guarded(request_to_stop) as stop:
            request_to_stop.note_step()
            send(signal.SIGINT)
            time.sleep(0.5)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)
