"""This package's own loop, in a plain process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from orpo_ray.bench.measure import synchroniser
from orpo_ray.bench.task import Parts, Task, Turn
from orpo_ray.config import TrainConfig
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.scorer import load_scorer
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training.engine import Engine, TorchEngine
from orpo_ray.training.loop import Meter, State, train_step
from orpo_ray.training.room import choose_recomputation
from orpo_ray.training.saving import Saver
from orpo_ray.training.source import PairSource

_PARTS = {"forward": "forward", "backward": "backward", "step": "optimizer"}


class Own:
    """`training.loop.train_step` on a `TorchEngine`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        policy = load_scorer(task.config.objective.model, task.config.model, seed=task.config.seed, device=task.device)
        set_recomputation(policy, choose_recomputation(policy, task.config, task.device))
        self.engine = TorchEngine(policy, task.config.optim, task.device)

    def run(self, turn: Turn) -> None:
        config, data = self.task.config, self.task.data
        source = PairSource(self.engine, config, data, data)
        feed = source.micro_batches(0)
        meter = Meter(StepFlops.of(self.engine.policy), peak=1.0)
        saving = Saving(self.engine, config) if config.train.checkpoint_every_steps else None
        parts: Parts | None = None
        for step in range(self.task.steps):
            watched = Watched(self.engine) if turn(parts=parts) else None
            started = time.perf_counter()
            engine: Engine = cast(Engine, watched) if watched else self.engine
            told = saving.saver.signals() if saving else {}
            _, signals = train_step(engine, config, source, feed, step, meter, told)
            if saving:
                saving.after(step + 1, signals)
            parts = watched.parts(time.perf_counter() - started) if watched else None
        turn(parts=parts)
        if saving:
            saving.saver.finish()


class Saving:
    """Checkpoints as a run takes them."""

    def __init__(self, engine: TorchEngine, config: TrainConfig) -> None:
        assert config.train.checkpoint_every_steps is not None
        self._engine, self._every = engine, config.train.checkpoint_every_steps
        keep = config.train.keep_checkpoints
        self.saver = Saver(Checkpoints(config.checkpoints_location), engine, newest=keep, best=0, warn=print)

    def after(self, step: int, signals: dict[str, float]) -> None:
        self.saver.heard(signals)
        if step % self._every == 0:
            self.saver.begin(Manifest(step, asdict(State(step)), self._engine.updates, "", "", None, {}))


class Watched:
    """An engine whose work is timed: it waits for the device before and after each part."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._synchronise = synchroniser(engine.device)
        self._seconds: Parts = dict.fromkeys(_PARTS.values(), 0.0)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        return self._timed(value, _PARTS[name]) if name in _PARTS else value

    def _timed(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self._synchronise()
            started = time.perf_counter()
            result = work(*arguments, **options)
            self._synchronise()
            self._seconds[part] += time.perf_counter() - started
            return result

        return timed

    def parts(self, seconds: float) -> Parts:
        """Of a step that took so many seconds; planning, packing and the loss itself are `data`."""
        return {"data": seconds - sum(self._seconds.values()), **self._seconds}
