"""The one training loop: every objective, every engine."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import Column
from orpo_ray.data.schedule import Indices
from orpo_ray.errors import Diverged
from orpo_ray.modeling.flops import StepFlops, measured_peak
from orpo_ray.modeling.loading import DTYPES
from orpo_ray.objectives.terms import Metrics
from orpo_ray.parsing import NUMBER, member
from orpo_ray.telemetry.phases import phase
from orpo_ray.training.batches import MicroBatch
from orpo_ray.training.engine import Engine
from orpo_ray.training.lr import learning_rate
from orpo_ray.training.measuring import reference_point
from orpo_ray.training.source import Instead, Source

Line = dict[str, Any]


@dataclass
class State:
    """All that a run carries from step to step beside weights and optimizer."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    best_value: float | None = None
    """Of `best_by`, at that step."""
    skipped: int = 0
    """Steps in a row, up to this one, whose loss or gradient was not finite."""
    best_by: str = "eval_loss"
    """`train.keep_by`."""
    source: dict[str, float] = field(default_factory=dict)
    """What the source of steps carries (see `Source.kept`)."""
    evaluation_due: bool = False
    """Whether this step's evaluation was begun and is not there: whoever continues here makes it first."""

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> State:
        """Raises `ValueError`, naming the key, where `found` is not what a checkpoint keeps of it."""
        none = type(None)
        value: tuple[type, ...] = (*NUMBER, none)
        kinds = {
            "step": (int,), "best_step": (int, none), "best_value": value, "best_by": (str,), "skipped": (int,),
            "source": (dict,), "evaluation_due": (bool,),
            "best_eval_loss": value,  # what an earlier version called it, when there was no other
        }  # fmt: skip
        if unknown := found.keys() - kinds.keys():
            raise ValueError(f"{min(unknown)!r:.40} is unknown")
        held = {key: member(found, key, *kinds[key]) for key in found}
        if "best_eval_loss" in held:
            held["best_value"] = held.pop("best_eval_loss")
        return cls(**held)


class Wanted(IntEnum):
    """Now, beside what the step number asks for."""

    NOTHING = 0
    CHECKPOINT = 1
    """Between two steps, the evaluation of the first of them included."""
    CHECKPOINT_AT_ONCE = 2
    LAST_CHECKPOINT = 3
    """And no step after it."""


class Sink:
    """Where the loop's results go; called on every rank, in the same order. By itself it keeps nothing."""

    def metrics(self, line: Line) -> None:
        """A training line or an evaluation line."""

    def best_model(self, engine: Engine, evaluation: Line, table: Tensor | None) -> bool:
        """`evaluation` is the best so far by `train.keep_by`: keep these weights; returns whether they were, alike on
        all ranks.

        `table (records, 1 + K)`: what the model gave each held-out record (see `scores`), where there are such.
        """
        return True

    def last_model(self, engine: Engine, evaluation: Line, table: Tensor | None) -> None:
        """After every evaluation: keep these weights, where the last are wanted."""

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        """Make the run resumable from here."""

    def compare(self, engine: Engine, state: State, line: Line) -> None:
        """At a checkpoint that the step number asks for, so not at those of the clock: have the model compared."""

    def signals(self) -> dict[str, float]:
        """What this rank has to tell the others at the end of a step; always under the same names."""
        return {}

    def heard(self, signals: dict[str, float]) -> Wanted:
        """Receives the signals added up over ranks; returns what is wanted now, alike on all ranks."""
        return Wanted.NOTHING


def run(
    engine: Engine,
    config: TrainConfig,
    source: Source,
    sink: Sink,
    state: State,
) -> State:
    """Train from `state` to the last step of `source`, or to one after which `sink` wants no more; returns the final
    state.

    The trajectory is a function of the configuration and the data: ranks and micro-batches change only the
    order of floating-point sums. A step whose loss or gradient is not finite updates nothing; raises `Diverged` after
    more than `train.max_skipped_steps` of them in a row.
    """
    total_steps = source.total_steps
    eval_every = config.train.eval_every_steps or source.steps_per_epoch
    checkpoint_every = config.train.checkpoint_every_steps or source.steps_per_epoch
    with phase("peak of matrix products"):
        meter = Meter.of(engine, config)
    feed = source.micro_batches(state.step)
    saved, line = state.step, Line()

    def save() -> None:
        nonlocal saved
        sink.checkpoint(engine, state, line)
        saved = state.step

    def attend(least: Wanted) -> bool:
        """While a step is made ready, or a model evaluated: see to what is wanted now, if it is `least` or more;
        returns whether that is the end of training."""
        wanted = hear(engine, sink)
        if wanted >= least and state.step > saved:
            save()
        return wanted == Wanted.LAST_CHECKPOINT

    def concluded(wanted: Wanted) -> bool:
        """Evaluate, save and compare the model of now, as the step number asks for or what is `wanted`; returns whether
        training goes on."""
        nonlocal line
        step = state.step
        if state.evaluation_due or step % eval_every == 0 or step == total_steps:
            state.evaluation_due = True
            found = source.evaluate(step, partial(attend, Wanted.CHECKPOINT_AT_ONCE))
            if found is None:
                return False
            state.evaluation_due = False
            evaluation, table = {"step": step, **found[0]}, found[1]
            sink.metrics(evaluation)
            line = {**line, **evaluation}
            if is_best(config, state, evaluation) and sink.best_model(engine, evaluation, table):
                state.best_step, state.best_value = step, evaluation[config.train.keep_by]
            sink.last_model(engine, evaluation, table)
        planned = step % checkpoint_every == 0 or step == total_steps
        # One that was saved while it was evaluated is left as it is: to write it anew would be to have none meanwhile.
        if (planned or wanted) and step > saved:
            save()
        if planned:
            sink.compare(engine, state, line)
        return wanted != Wanted.LAST_CHECKPOINT

    if state.step == 0:
        with phase("first evaluation"):
            first = source.evaluate(0, partial(attend, Wanted.CHECKPOINT_AT_ONCE))
        if first is None:
            return state
        sink.metrics({"step": 0, **first[0]})
    elif state.evaluation_due and not concluded(Wanted.NOTHING):
        return state
    while state.step < total_steps:
        said = source.before(state.step, partial(attend, Wanted.CHECKPOINT))
        if said is Instead.END:
            break
        if said is Instead.PASS:
            line = {}
            state.step += 1
            state.source = source.kept()
            if not concluded(hear(engine, sink)):
                break
            continue
        line, signals = train_step(engine, config, source, feed, state.step, meter, sink.signals())
        line |= said
        state.step += 1
        state.source = source.kept()
        state.skipped = state.skipped + 1 if "skipped" in line else 0
        if state.skipped:
            line["skipped"] = [source.record(pair) for pair in line["skipped"]]
        sink.metrics(line)
        wanted = sink.heard(signals)
        if state.skipped > config.train.max_skipped_steps:
            raise Diverged(
                f"step {state.step}: the loss is {line['loss']} and the gradient's norm {line['grad_norm']}, after "
                f"{state.skipped - 1} such steps that were skipped; try a lower optim.lr or a longer warm-up. "
                "metrics.jsonl names their records; the same command continues from the last checkpoint"
            )
        if not concluded(wanted):
            break
    return state


def hear(engine: Engine, sink: Sink) -> Wanted:
    """What is wanted now, asked between two calls of `train_step`. All ranks must call it together."""
    told = engine.gather(sink.signals())
    return sink.heard({name: sum(of_rank[name] for of_rank in told) for name in told[0]})


def is_best(config: TrainConfig, state: State, evaluation: Line) -> bool:
    """Whether `evaluation` is better by `train.keep_by` than any before it; one that is not finite never is."""
    found = cost(config, evaluation)
    return found is not None and (state.best_value is None or found < _signed(config, state.best_value))


def cost(config: TrainConfig, line: Line) -> float | None:
    """`train.keep_by` of a line, its sign turned where higher is better; None where it is not there or not finite."""
    value = line.get(config.train.keep_by)
    return None if value is None or not math.isfinite(value) else _signed(config, value)


def _signed(config: TrainConfig, value: float) -> float:
    return value if config.train.keep_direction == "min" else -value


class Meter(NamedTuple):
    """What MFU is made of."""

    flops: StepFlops
    peak: float
    """FLOP/s of all ranks' matrix products, measured."""

    @classmethod
    def of(cls, engine: Engine, config: TrainConfig) -> Meter:
        return cls(StepFlops.of(engine.policy), measured_peak(engine.device, DTYPES[config.model.dtype]) * engine.ranks)


def train_step(
    engine: Engine,
    config: TrainConfig,
    source: Source,
    feed: Iterator[MicroBatch],
    step: int,
    meter: Meter,
    signals: dict[str, float],
) -> tuple[Line, dict[str, float]]:
    """One optimizer step, on the next micro-batches of `feed` (see `Source`): a pass that trains, behind one for its
    reference point where the objective has one.

    Returns its metrics line, and `signals` added up over ranks. Where the gradient's norm is not finite, which any
    loss that is not makes sure of, nothing is updated and `skipped` in the line holds the pairs at fault.
    """
    objective = source.objective
    started = time.perf_counter()
    # Dropout, where a model trains with it, draws from the step and the rank alone, so that resuming repeats it.
    seed = int(np.random.SeedSequence([config.seed, step, engine.rank]).generate_state(1)[0])
    # Not `torch.manual_seed`, which takes a millisecond to note down where it was called, for devices not yet in use.
    torch.default_generator.manual_seed(seed)
    if engine.device.type == "cuda":
        torch.cuda.manual_seed(seed)
    shares: Metrics = {}
    flops = 0.0
    finite: list[tuple[Indices, Tensor]] = []  # records, and whether a row of theirs is finite
    of_step: dict[Column, Tensor] = {}
    if objective.judges_labels:
        of_step["baseline"] = reference_point(engine, feed)
    for micro_batch in feed:
        work, _, batch, rows, last = micro_batch.to(engine.device)
        scored = engine.forward(batch, by_token=objective.settings.by_token)
        columns = {**rows.columns, **{name: value.to(scored.dtype) for name, value in of_step.items()}}
        if objective.settings.by_token:
            responses = batch.lengths[batch.continuations]
            loss, metrics = objective.loss_of_tokens(scored, responses, work.totals, columns)
            in_rows = torch.segment_reduce(scored.detach(), "sum", lengths=responses, unsafe=True).view(
                len(responses), -1
            )
        else:
            in_rows, lengths = (rows.lay_out(values, batch.prompts) for values in (scored, batch.lengths))
            loss, metrics = objective.loss(in_rows, lengths, work.totals, columns)
        finite.append((rows.records, in_rows.detach().isfinite().all(1)))
        infect = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        engine.backward(loss * batch.weight * infect, last=last)
        for name, share in metrics.items():
            shares[name] = shares.get(name, 0) + share * batch.weight
        flops += meter.flops(batch) * batch.weight
        if last:
            break
    lr = learning_rate(step, source.total_steps, config.optim)
    norm = engine.step(lr)
    told = {"flops": flops, **signals}
    totals, grad_norm = _sum_over_ranks(engine, shares, told, norm)
    seconds = time.perf_counter() - started
    line: Line = {
        "step": step + 1,
        "epoch": source.epoch(step + 1),
        **{name: totals[name] for name in shares},
        "lr": lr,
        "grad_norm": grad_norm,
        "tokens": work.tokens,
        "pairs_per_second": work.totals.pairs / seconds,
        "tokens_per_second": work.tokens / seconds,
        "mfu": totals["flops"] / seconds / meter.peak,
        "peak_memory_bytes": _peak_memory(engine.device),
    }
    if not math.isfinite(grad_norm):
        line["skipped"] = _pairs_at_fault(engine, finite)
    return line, {name: totals[name] for name in signals}


def _pairs_at_fault(engine: Engine, finite: list[tuple[Indices, Tensor]]) -> list[int]:
    """Records of the step, over all ranks, whose scores are not finite; all of them, where all scores are."""
    here = [(pair, flag) for pairs, flags in finite for pair, flag in zip(pairs.tolist(), flags.tolist(), strict=True)]
    all_rows = [row for rank in engine.gather(here) for row in rank]
    return sorted({pair for pair, flag in all_rows if not flag} or {pair for pair, _ in all_rows})


def _sum_over_ranks(
    engine: Engine, shares: Metrics, told: dict[str, float], norm: Tensor
) -> tuple[dict[str, float], float]:
    """The only point of a step where the host waits for the device. `told`: numbers that are on the host; `norm`: one
    that is on the device, and is the same on all ranks."""
    on_host = torch.tensor(list(told.values()), dtype=torch.float64)
    if engine.device.type == "cuda":  # pinned, it gets there without a wait of its own
        on_host = on_host.pin_memory().to(engine.device, non_blocking=True)
    summed = engine.all_sum(torch.cat([torch.stack([share.double() for share in shares.values()]), on_host]))
    *totals, read = torch.cat([summed, norm.double().view(1)]).tolist()
    return dict(zip([*shares, *told], totals, strict=True)), read


def _peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation, or on a CPU this process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
