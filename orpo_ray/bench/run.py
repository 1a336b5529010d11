"""A benchmark from its configuration to its result: starts the contestants and gives them turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orpo_ray.bench.contestant_process import ContestantProcess, Lost
from orpo_ray.bench.process import Phase
from orpo_ray.bench.results import Record, Work, result
from orpo_ray.bench.task import Task
from orpo_ray.config import BenchmarkConfig, EvaluationBenchmarkConfig
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.flops import StepFlops, measured_peak
from orpo_ray.modeling.loading import DTYPES, check_fit, load_config
from orpo_ray.modeling.scorer import load_scorer
from orpo_ray.objectives.registry import build_objective
from orpo_ray.terminal import Console

PARTS_STEPS = 3
"""Steps of our own loop after the measured ones, for what they consist of."""

_OMP_THREADS = "OMP_NUM_THREADS"

Show = Callable[[str], None]
"""Tells, in a few words, what was done last; called once for every step."""


def run(config: BenchmarkConfig | EvaluationBenchmarkConfig, console: Console) -> dict[str, Any]:
    """Measure what `config` says; returns the result file's content.

    Raises `UserError` for what the user has to mend.
    """
    if isinstance(config, BenchmarkConfig):
        return run_trainers(config, console)
    from orpo_ray.bench.stages.run import run as run_stage

    return run_stage(config, console)


def run_trainers(config: BenchmarkConfig, console: Console) -> dict[str, Any]:
    """Measure every contestant; returns the result file's content (see `results.result`).

    A contestant that cannot run here, or whose process dies, is in it as not measured, with the reason. Raises
    `UserError` for what the user has to mend: the data, the model, or a device that the benchmark needs.
    """
    if config.needs == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{config.name}: needs a CUDA device, and there is none here")
    tasks = {name: _task(config, name) for name in config.contestants}
    with console.status("reading and tokenising") if console.is_terminal else _nothing():
        for name, task in tasks.items():
            _check(name, task)
        records = {name: Record(_works(config, task)) for name, task in tasks.items()}
    device = next(iter(tasks.values())).device
    turns = _by_steps if config.turns == "steps" else _by_runs
    with _threads(config.threads), _progress(config, tasks, console) as show:
        peaks = Peaks(device, {task.config.model.dtype for task in tasks.values()})
        turns(config, tasks, records, peaks, show)
    return result(config, records, peaks.best, device)


class Peaks:
    """The best matmul rate of the device, FLOP/s by dtype; measured while no contestant computes."""

    def __init__(self, device: torch.device, dtypes: set[str]) -> None:
        self._device = device
        self.best = dict.fromkeys(sorted(dtypes), 0.0)
        self.measure()

    def measure(self) -> None:
        for dtype, best in self.best.items():
            self.best[dtype] = max(best, measured_peak(self._device, DTYPES[dtype]))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the contestants' room


def _by_steps(
    config: BenchmarkConfig, tasks: dict[str, Task], records: dict[str, Record], peaks: Peaks, show: Show
) -> None:
    """All contestants loaded at once, an optimizer step each in turn."""
    processes: dict[str, ContestantProcess] = {}
    try:
        for name, task in tasks.items():
            processes[name] = ContestantProcess(task)
        for name, process in processes.items():
            with _not_lost(records[name]):
                process.load()
        for phase in _phases(config, parts=PARTS_STEPS):
            peaks.measure()
            for name, process in processes.items():
                if records[name].not_measured is None and (phase != "parts" or tasks[name].trainer == "orpo_ray"):
                    with _not_lost(records[name]):
                        _step(name, process, phase, records[name], show)
        for name, process in processes.items():
            if records[name].not_measured is None:
                process.end()
    finally:
        for process in processes.values():
            process.stop()


def _by_runs(
    config: BenchmarkConfig, tasks: dict[str, Task], records: dict[str, Record], peaks: Peaks, show: Show
) -> None:
    """A whole run each in turn, in a process of its own."""
    for _ in range(config.repeats):
        for name, task in tasks.items():
            if records[name].not_measured is not None:
                continue
            peaks.measure()
            process = ContestantProcess(task)
            try:
                with _not_lost(records[name]):
                    process.load()
                    for phase in _phases(config, parts=PARTS_STEPS if task.trainer == "orpo_ray" else 0):
                        _step(name, process, phase, records[name], show)
                    process.end()
            finally:
                process.stop()


def _phases(config: BenchmarkConfig, parts: int) -> list[Phase]:
    steps: dict[Phase, int] = {"warm_up": config.warm_up, "timed": config.steps, "parts": parts}
    return [phase for phase, number in steps.items() for _ in range(number)]


def _step(name: str, process: ContestantProcess, phase: Phase, record: Record, show: Show) -> None:
    report = process.step(phase)
    if phase == "timed":
        record.reports.append(report)
    if report.parts is not None:
        record.parts.append(report.parts)
    show(f"{name}: {report.seconds:.2f} s a step{' (warm-up)' if phase == 'warm_up' else ''}")


@contextmanager
def _not_lost(record: Record) -> Iterator[None]:
    try:
        yield
    except Lost as error:
        record.not_measured = str(error)


def _task(config: BenchmarkConfig, name: str) -> Task:
    contestant, training = config.contestants[name], config.training(name)
    steps = config.warm_up + config.steps + (PARTS_STEPS if contestant.trainer == "orpo_ray" else 0)
    return Task(contestant.trainer, training, contestant.stretch, config.warm_up, steps)


def _check(name: str, task: Task) -> None:
    """Raises `UserError` where data and model do not have what the steps need."""
    model, data = task.config.model, task.config.data
    check_fit(model, data.max_length)
    positions, stretch = getattr(load_config(model), "max_position_embeddings", None), task.stretch
    if stretch is not None and positions is not None and stretch * data.max_length > positions:
        raise UserError(
            f"contestants.{name}.stretch: {stretch} times data.max_length={data.max_length} is more than the "
            f"{positions} positions of {model.name_or_path}; lower one of them"
        )
    steps = task.schedule.total_steps
    if steps <= task.steps:  # loaders read one step ahead
        raise UserError(
            f"contestants.{name}: {data.train} and train.epochs make {steps} steps, but {task.steps + 1} are needed; "
            "lower steps, warm_up or run.train.global_batch_size"
        )


def _works(config: BenchmarkConfig, task: Task) -> list[Work]:
    """What the pairs of each measured step need, over all repeats."""
    objective = build_objective(task.config.objective)
    shape = task.config.model.model_copy(update={"init": "random"})  # FLOPs follow from the shapes alone
    with torch.device("meta") as nowhere:
        flops = StepFlops.of(load_scorer(objective.model, shape, seed=0, device=nowhere))
    found = []
    for step in range(config.warm_up, config.warm_up + config.steps):
        pairs = [pair[:2] if objective.best_alone else pair for pair in task.pairs(step)]
        batch = pack(pairs, score_prompts=objective.score_prompts)
        found.append(Work(len(pairs), batch.tokens, flops(batch)))
    return found * config.repeats


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """For this process, which measures peaks, and those that it starts."""
    if number is None:
        yield
        return
    environment, threads = os.environ.get(_OMP_THREADS), torch.get_num_threads()
    os.environ[_OMP_THREADS] = str(number)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ[_OMP_THREADS]
        if environment is not None:
            os.environ[_OMP_THREADS] = environment


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _progress(config: BenchmarkConfig, tasks: dict[str, Task], console: Console) -> Iterator[Show]:
    """A bar over all steps; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield lambda text: console.say(f"{config.name}: {text}")
        return
    columns = (
        TextColumn(config.name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[last]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        total = config.repeats * sum(task.steps for task in tasks.values())
        bar = progress.add_task(config.name, total=total, last="loading")
        yield lambda text: progress.update(bar, advance=1, last=text)
