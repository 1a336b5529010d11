"""All stages of a graph, as many at a time as the cluster holds, each as its own command would run it."""

from __future__ import annotations

import io
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from orpo_ray.cluster.connection import connect
from orpo_ray.cluster.leftovers import leftovers_removed
from orpo_ray.cluster.owned_groups import remove_lost_groups
from orpo_ray.cluster.share import cluster_nodes, require_gpus
from orpo_ray.config import TrainConfig
from orpo_ray.errors import UserError, last_line
from orpo_ray.stages.carrying_out import carry_out
from orpo_ray.stages.graph import Graph, Stage, StageConfig, folder_of
from orpo_ray.stages.progress import Progress
from orpo_ray.stages.room import Nodes, room_for, room_of
from orpo_ray.status.read import read_status
from orpo_ray.storage.mirror import fetched
from orpo_ray.terminal import Console
from orpo_ray.training.stopping import StopRequest, saving_when_stopped

LOG = "log.txt"
"""In the folder of a stage that ran beside others: what its own command would have printed."""
_LOOK = 0.5  # seconds between two looks for stages that have ended
_SECONDS_BETWEEN_LINES = 30.0
_AGAIN = 2  # times that a stage is begun again whose own process was lost
_SAID = 500  # characters of what ended one


class StagesFailed(UserError):
    """Some stages have failed; all that do not need them are done."""

    def __init__(self, message: str, failed: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failed = failed
        """Why, by label."""


def run_stages(
    graph: Graph,
    console: Console,
    *,
    done: Mapping[str, Path] | None = None,
    usual: Mapping[str, float] | None = None,
    ended: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Carry out every stage behind those that it needs; returns their pages, by label.

    Stages that do not need each other run at the same time, as far as the cluster holds them; what their commands would
    print is then in the `log.txt` of their folders. Where one fails, those that do not need it are carried out all the
    same. `done`: pages of stages that are known to be finished, and are not looked at; `usual`: see `Progress`; `ended`
    is called with the label of each that is done.
    Raises `StagesFailed` at the end where any has failed, naming each and why; `KeyboardInterrupt` where a stop was
    asked for. The same call goes on.
    """
    progress = Progress(graph, set(done or {}), usual or {})
    if len(progress.done) == len(graph):
        return dict(done or {})
    connect(cpus := max(stage.config.cpus for stage in graph))
    for config in (stage.config for stage in graph if stage.label not in progress.done):
        if isinstance(config, TrainConfig):
            require_gpus(config.scaling, cpus)
    run = _Run(graph, progress, cluster_nodes(), console, ended or (lambda _: None))
    run.pages |= done or {}
    if run.holds_two:
        run.beside_each_other()
    else:
        run.one_by_one()
    if progress.failed:
        raise StagesFailed(progress.told(), progress.failed)
    return run.pages


@dataclass(frozen=True)
class Surroundings:
    """What a stage's own process has from the command: a cluster's node may have started it elsewhere, and knows none
    of the command's keys. On their way they are in Ray's memory alone."""

    folder: str
    """That relative paths are of."""
    environment: Mapping[str, str] = field(repr=False)
    threads: int
    """Of sums on the CPU, such as of sentence embeddings: Ray gives one to a process that asks for no CPU."""

    @classmethod
    def of_here(cls) -> Surroundings:
        own = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        return cls(os.getcwd(), own, torch.get_num_threads())

    def enter(self) -> None:
        """What the process's environment has already, such as its devices, stays."""
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        for name, text in self.environment.items():
            os.environ.setdefault(name, text)


@dataclass(frozen=True)
class Outcome:
    """What a stage's own process tells."""

    page: Path | None = None
    failure: str = ""
    stopped: bool = False
    lost: bool = False
    """Whether the process told nothing, but was killed."""


class _Run:
    def __init__(
        self, graph: Graph, progress: Progress, nodes: Nodes, console: Console, ended: Callable[[str], None]
    ) -> None:
        self._graph, self._progress, self._console, self._tell = graph, progress, console, ended
        self._whole = room_of(nodes)
        self._room = {stage.label: room_for(stage.config, nodes) for stage in graph}
        self._started = time.monotonic()
        self.pages: dict[str, Path] = {}

    @property
    def holds_two(self) -> bool:
        """Whether there are two stages that could run at the same time."""
        return any(
            one.label not in self._graph.needed_by(other.label)
            and self._whole.holds(self._room[one.label] + self._room[other.label])
            for one, other in combinations(self._graph, 2)
        )

    def one_by_one(self) -> None:
        """In this process, so that each is seen as its own command shows it."""
        while ready := self._progress.ready(set()):
            stage = ready[0]
            self._begins(stage, 0)
            try:
                page = carry_out(stage.config, self._curves(stage), self._console)
            except UserError as error:
                self._ended(stage, Outcome(failure=str(error)))
            else:
                self._ended(stage, Outcome(page))

    def beside_each_other(self) -> None:
        request = StopRequest()
        with (
            leftovers_removed(),
            saving_when_stopped(request, self._console, "stages", lambda: False, several=True) as stopping,
        ):
            self._beside_each_other(request)
        if stopping.asked:
            raise KeyboardInterrupt

    def _beside_each_other(self, request: StopRequest) -> None:
        """Until all have ended; behind a `request` to stop none begins."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # A stage's own process waits for its workers: any part of a CPU would be missing to them. Where memory is short
        # Ray kills first what it may try again itself, and all of a stage would go in the place of one worker.
        process = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(in_a_process)
        lost: Counter[str] = Counter()
        around = Surroundings.of_here()
        running: dict[Any, Stage] = {}
        free, told = self._whole, time.monotonic()
        while True:
            if request.made:
                for reference, stage in running.items():
                    if not isinstance(stage.config, TrainConfig):  # what it has made is kept at any time
                        ray.cancel(reference, force=True)
            else:
                for stage in self._progress.ready({one.label for one in running.values()}):
                    if free.holds(self._room[stage.label]):
                        free -= self._room[stage.label]
                        self._begins(stage, len(running))
                        called = process.remote(stage.config, self._curves(stage), request.name, around)
                        running[called] = stage
            if not running:
                return
            remove_lost_groups()
            for reference in ray.wait(list(running), timeout=_LOOK)[0]:
                stage = running.pop(reference)
                free += self._room[stage.label]
                cancelled = request.made and not isinstance(stage.config, TrainConfig)
                outcome = _outcome(reference, cancelled=cancelled)
                if outcome.stopped and not request.made:
                    outcome = Outcome(failure="a signal has stopped it alone", lost=True)
                lost[stage.label] += outcome.lost
                if outcome.lost and lost[stage.label] <= _AGAIN:
                    self._console.say(f"{stage.label}: its process was lost, and is begun again: {outcome.failure}")
                else:
                    self._ended(stage, outcome)
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                for stage in running.values():
                    self._console.say(f"{stage.label}: {_brief(stage)}")

    def _begins(self, stage: Stage, running: int) -> None:
        self._progress.begin(stage.label, finished=_is_finished(stage))
        left = self._progress.left(time.monotonic() - self._started)
        self._console.say(f"{self._progress.place(running)}: {stage.label}{left and f', {left}'}")

    def _ended(self, stage: Stage, outcome: Outcome) -> None:
        if outcome.stopped:
            return
        self._progress.end(stage.label, outcome.failure)
        if outcome.page is not None:
            self.pages[stage.label] = outcome.page
            self._tell(stage.label)
        if outcome.failure:
            self._console.say(f"{stage.label}: failed: {outcome.failure}")

    def _curves(self, stage: Stage) -> dict[str, Path]:
        """Runs whose curves an evaluation's page shows: of policies, those that they began from too."""
        needed = self._graph.needed_by(stage.label)
        return {
            one.label: one.folder for one in self._graph
            if one.label in needed and isinstance(one.config, TrainConfig) and one.config.objective.name != "reward"
        }  # fmt: skip


def in_a_process(config: StageConfig, curves: Mapping[str, Path], stop: str, around: Surroundings) -> Outcome:
    """Carry out a stage in a process of its own; `stop`: the name of the request that it hears."""
    around.enter()
    folder, early = folder_of(config), io.StringIO()
    try:  # before there is a folder: see `LOG`
        fetched(config.storage, config.name, Console(file=early))
    except UserError as error:
        return Outcome(failure=str(error))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as said, ThreadPoolExecutor(1) as thread:
        said.write(early.getvalue())
        # Not in the main thread, where training would answer signals, and forget the request that others hear too.
        work = thread.submit(carry_out, config, curves, Console(file=said), StopRequest(stop))
        try:
            return Outcome(work.result())
        except KeyboardInterrupt:
            return Outcome(stopped=True)
        except UserError as error:
            return Outcome(failure=str(error))
        except Exception as error:
            said.write("".join(traceback.format_exception(error)))
            return Outcome(failure=f"{last_line(error)[:_SAID]} ({folder / LOG} has all of it)")


def _outcome(reference: Any, *, cancelled: bool = False) -> Outcome:
    """`cancelled`: its process was ended by us, which Ray tells as it tells of one that was lost."""
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        if cancelled:
            return Outcome(stopped=True)
        return Outcome(failure=last_line(error)[:_SAID], lost=not isinstance(error, ray.exceptions.RayTaskError))
    return outcome


def _is_finished(stage: Stage) -> bool:
    try:
        return read_status(stage.folder).state == "finished"
    except UserError:
        return False


def _brief(stage: Stage) -> str:
    try:
        return read_status(stage.folder).brief
    except UserError:  # it has not begun to write
        return "starting"
