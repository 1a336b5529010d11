"""Notices when training hangs, and says which rank is at fault.

A collective that one rank never joins leaves all others waiting without a word. So each rank's watchdog, a thread,
publishes a pulse and how many calls of the engine it has seen; a rank without progress for too long looks at the
others' and ends its process, and Ray Train starts the group again.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from orpo_ray.cluster.hosts import this_host
from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.reward import StateDict
from orpo_ray.training.engine import Engine, Piece

Result = TypeVar("Result")

EXIT_CODE = 75  # of a process that its watchdog ended
_PULSES = 20  # in the time that counts as a hang
_LONGEST_PULSE = 10.0  # seconds
_SIGNS = 3  # pulses in which a rank that lives gives another sign


class Pulse(NamedTuple):
    """What a rank tells of itself."""

    beats: int
    calls: int
    """Of the engine that have begun or ended."""
    place: str
    """Where in this package its training thread is."""
    process: str
    ending: bool = False
    """Whether its watchdog is about to end its process."""


class WatchedEngine:
    """An engine whose calls are told when they begin, and when they end."""

    def __init__(self, engine: Engine, called: Callable[[], None]) -> None:
        self._engine, self._called = engine, called
        self.policy, self.device, self.replicated = engine.policy, engine.device, engine.replicated
        self.rank, self.ranks = engine.rank, engine.ranks

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        return self._told(lambda: self._engine.forward(batch, by_token=by_token))

    def backward(self, share: Tensor, *, last: bool) -> None:
        self._told(lambda: self._engine.backward(share, last=last))

    def step(self, lr: float) -> Tensor:
        return self._told(lambda: self._engine.step(lr))

    def all_sum(self, values: Tensor) -> Tensor:
        return self._told(lambda: self._engine.all_sum(values))

    def gather(self, value: Any) -> list[Any]:
        return self._told(lambda: self._engine.gather(value))

    def broadcast(self, value: Any) -> Any:
        return self._told(lambda: self._engine.broadcast(value))

    def weights(self) -> StateDict | None:
        return self._told(self._engine.weights)

    def pieces(self) -> list[Piece]:
        return self._engine.pieces()

    @property
    def updates(self) -> int:
        return self._engine.updates

    def filled(self, updates: int) -> None:
        self._engine.filled(updates)

    def _told(self, call: Callable[[], Result]) -> Result:
        self._called()
        result = call()
        self._called()
        return result


class Watchdog:
    """Watches the training thread, which is the one that makes it."""

    def __init__(self, engine: Engine, timeout: float, tell: Callable[[str], None]) -> None:
        """`timeout`: seconds without a call of the engine. `tell` is called on one rank, before processes end."""
        self._rank, self._ranks = engine.rank, engine.ranks
        self._timeout, self._tell = timeout, tell
        self._hosts = engine.gather(this_host())
        self._calls = self._beats = 0
        self._ending = False
        self._thread = threading.get_ident()
        self._stopped = threading.Event()
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._patience = max(1.0, self._pulse)
        self._store.set_timeout(timedelta(seconds=self._patience))
        self._question: threading.Thread | None = None
        self.engine: Engine = WatchedEngine(engine, self._called)
        """The same, whose calls are seen: to be used in its place."""
        threading.Thread(target=self._watch, daemon=True, name="orpo_ray-watchdog").start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def _pulse(self) -> float:
        return min(self._timeout / _PULSES, _LONGEST_PULSE)

    def _called(self) -> None:
        self._calls += 1

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._stopped.wait(self._pulse):
            self._publish()
            if self._calls != seen:
                seen, since = self._calls, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._give_up()

    def _publish(self) -> None:
        self._beats += 1
        process = f"{socket.gethostname()}, process {os.getpid()}"
        pulse = Pulse(self._beats, self._calls, self._place(), process, self._ending)
        self._asked(lambda: self._store.set(f"orpo_ray/{self._rank}", json.dumps(pulse)))

    def _place(self) -> str:
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if "orpo_ray" in frame.f_code.co_filename:
                return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "outside of orpo_ray"

    def _give_up(self) -> None:
        self._ending = True
        self._publish()
        first = self._pulses()
        for _ in range(_SIGNS):
            time.sleep(self._pulse)
            self._publish()
        second = self._pulses()
        answers = any(pulse is not None for pulse in second)
        alive = [rank for rank in range(self._ranks) if rank == self._rank or self._lives(rank, first, second, answers)]
        if self._rank == alive[0]:
            self._tell(f"no progress for {self._timeout:g} s: {diagnosis(first, second, alive, self._hosts)}")
        if self._rank == 0:  # the others are asking its store
            time.sleep(_SIGNS * self._pulse + self._patience)
        os._exit(EXIT_CODE)

    def _pulses(self) -> list[Pulse | None]:
        return [self._asked(partial(self._pulse_of, rank)) for rank in range(self._ranks)]

    def _pulse_of(self, rank: int) -> Pulse | None:
        key = f"orpo_ray/{rank}"
        return Pulse(*json.loads(self._store.get(key))) if self._store.check([key]) else None

    @staticmethod
    def _lives(rank: int, first: list[Pulse | None], second: list[Pulse | None], answers: bool) -> bool:
        """Where the store does not answer, it is rank 0 that is known to be at fault, and nobody else."""
        if not answers:
            return rank > 0
        pulse = second[rank]
        return pulse != first[rank] or (pulse is not None and pulse.ending)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """None where the store does not answer in time: it is in rank 0's process.

        Where that process is stopped, c10d waits for ever whatever its time-out, so the question has a thread of its
        own, and no other is asked before it has come back.
        """
        if self._question is not None and self._question.is_alive():
            return None
        answers: SimpleQueue[Any] = SimpleQueue()

        def wait() -> None:
            with suppress(RuntimeError, ValueError):  # torch.distributed's errors are RuntimeErrors
                answers.put(ask())

        self._question = threading.Thread(target=wait, daemon=True, name="orpo_ray-watchdog-question")
        try:
            self._question.start()
        except RuntimeError:  # memory is so short that there is none for a thread
            return None
        self._question.join(self._patience)
        return None if answers.empty() else answers.get()


def diagnosis(
    first: list[Pulse | None], second: list[Pulse | None], alive: list[int], hosts: Sequence[str] = ()
) -> str:
    """Who is at fault, from the pulses of all ranks at two times.

    `alive`: those that gave a sign between them, the first of which tells; `hosts`: of all ranks. Between two hosts it
    may be what joins them.
    """
    silent = [rank for rank in range(len(second)) if rank not in alive]
    if silent:
        last = [(rank, second[rank] or first[rank]) for rank in silent]
        teller = hosts[alive[0]] if hosts else ""
        others = dict.fromkeys(hosts[rank] for rank in silent if hosts and hosts[rank] != teller)
        apart = f"{teller} hears nothing of {', '.join(others)}: " if others else ""
        return apart + "; ".join(
            f"rank {rank} gives no sign of life" + (f" ({pulse.process}), last seen in {pulse.place}" if pulse else "")
            for rank, pulse in last
        )
    known = {rank: pulse for rank, pulse in enumerate(second) if pulse is not None}
    behind = min(pulse.calls for pulse in known.values())
    late = {rank: pulse for rank, pulse in known.items() if pulse.calls == behind}
    return "; ".join(f"rank {rank} is stuck in {pulse.place} ({pulse.process})" for rank, pulse in late.items())
