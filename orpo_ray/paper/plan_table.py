"""The plan as it is printed: a row for stages of a kind, what was assumed, and totals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from orpo_ray.costs.device import Cores, Device, Gpus
from orpo_ray.paper.plan import Plan, PlannedStage
from orpo_ray.terminal import Console

_UNKNOWN = "?"


@dataclass(frozen=True)
class Row:
    """Stages that differ in size and seed alone."""

    kind: str
    data: str
    stages: list[PlannedStage]

    @property
    def sizes(self) -> list[str]:
        return list(dict.fromkeys(stage.place.size for stage in self.stages if stage.place and stage.place.size))

    @property
    def seeds(self) -> list[int]:
        found = (stage.place.seed for stage in self.stages if stage.place)
        return list(dict.fromkeys(seed for seed in found if seed is not None))

    @property
    def done(self) -> int:
        return sum(stage.done for stage in self.stages)


def rows_of(plan: Plan) -> list[Row]:
    """In the order of their first stages; a stage without a place is a row of its own."""
    found: dict[tuple[str, str], Row] = {}
    for label, stage in plan.stages.items():
        key = (label, "") if stage.place is None else (stage.place.kind, stage.place.data)
        found.setdefault(key, Row(*key, [])).stages.append(stage)
    return list(found.values())


def print_plan(plan: Plan, console: Console) -> None:
    """A table, and below it totals, what is left, and what was assumed."""
    rows = rows_of(plan)
    spent = any(stage.spent is not None for stage in plan.stages.values())
    table = Table("stages, behind", "count", "done", "steps", "predicted", box=None, pad_edge=False)
    for title in [*(["took"] if spent else []), "disk"]:
        table.add_column(title)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        needs = _needs(row, plan)
        one = row.sizes if len(row.sizes) == 1 else []
        name = " ".join(part for part in (row.data, *one, row.kind) if part) + (f" < {needs}" if needs else "")
        cells = [name, str(len(row.stages)), str(row.done), _steps(row.stages), _hours(row.stages)]
        table.add_row(*cells, *([_took(row.stages)] if spent else []), _disk(row.stages))
    if said := "; ".join(_listed(rows)):
        console.say(f"each of {said}")
    console.print(table)
    for line in totals(plan):
        console.say(line)


def _listed(rows: Sequence[Row]) -> list[str]:
    """The sizes and the seeds, where there are several."""
    sizes = list(dict.fromkeys(size for row in rows for size in row.sizes))
    seeds = list(dict.fromkeys(str(seed) for row in rows for seed in row.seeds))
    return [f"the {name} {', '.join(found)}" for name, found in (("sizes", sizes), ("seeds", seeds)) if len(found) > 1]


def totals(plan: Plan) -> list[str]:
    """What all of it comes to, a line each."""
    stages, left = list(plan.stages.values()), plan.left
    done = [stage.label for stage in stages if stage.done]
    lines = [f"all     {_total(stages)}; {duration(plan.elapsed())} from first to last"]
    if done:
        labels, seconds = plan.critical_path(done=done)
        lines.append(f"done    {_total([stage for stage in stages if stage.done])}")
        if left:
            lines.append(f"left    {_total(left)}; {duration(plan.elapsed(done=done))} from now to the last")
    else:
        labels, seconds = plan.critical_path()
    if labels:
        chain = " > ".join(labels)
        lines.append(f"longest {duration(seconds)}, however large the cluster: {chain}")
    lines += _compared(stages)
    lines.append(f"planned for {_cluster(plan)}")
    lines += [f"assumed: {note}" for note in plan.notes]
    return lines


def _compared(stages: Iterable[PlannedStage]) -> list[str]:
    """Predicted beside measured, over stages of which both are known."""
    both = [(stage.seconds, stage.spent) for stage in stages if stage.seconds is not None and stage.spent]
    if not both:
        return []
    predicted, spent = (sum(column) for column in zip(*both, strict=True))
    ratio = predicted / spent
    return [f"took    {duration(spent)} in {len(both)} stages, predicted {duration(predicted)} ({ratio:.2f} of it)"]


def _total(stages: Sequence[PlannedStage]) -> str:
    parts = [f"{len(stages)} stage{'' if len(stages) == 1 else 's'}", _hours(stages), f"{_disk(stages)} of disk"]
    return ", ".join(part for part in parts if part)


def _needs(row: Row, plan: Plan) -> str:
    """Kinds of stages, or labels where they have none."""
    found: dict[str, None] = {}
    for stage in row.stages:
        for need in stage.needs:
            place = plan.stages[need].place
            found[need if place is None else place.kind] = None
    return ", ".join(found)


def _steps(stages: Sequence[PlannedStage]) -> str:
    """Of each stage, the fewest and the most."""
    steps = [stage.work.steps for stage in stages if stage.work.steps is not None]
    if not steps:
        return "" if all(stage.seconds is not None for stage in stages) else _UNKNOWN
    return f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,}-{max(steps):,}"


def _hours(stages: Iterable[PlannedStage]) -> str:
    """Of GPUs and of cores, together; `+ ?` where some are not known."""
    stages = list(stages)
    texts = []
    for unit, on in (("GPU", True), ("core", False)):
        known = [stage.hours for stage in stages if stage.on_gpus == on and stage.hours is not None]
        if known:
            texts.append(_unit(sum(known), unit))
    if any(stage.hours is None for stage in stages):
        texts.append(_UNKNOWN)
    return " + ".join(texts)


def _unit(hours: float, unit: str) -> str:
    if hours * 60 < 1:
        return f"{hours * 3600:.0f} {unit}-s"
    return f"{hours * 60:.0f} {unit}-min" if hours < 2 else f"{hours:,.1f} {unit}-h"


def _took(stages: Iterable[PlannedStage]) -> str:
    found = [(stage.spent or 0.0) * stage.units / 3600 for stage in stages if stage.spent is not None]
    unit = "GPU" if any(stage.on_gpus for stage in stages) else "core"
    return _unit(sum(found), unit) if found else ""


def _disk(stages: Iterable[PlannedStage]) -> str:
    known = [stage.work.disk for stage in stages if stage.work.disk is not None]
    unknown = _UNKNOWN if len(known) < len(list(stages)) else ""
    return " + ".join(part for part in (size(sum(known)) if known else "", unknown) if part)


def size(count: float) -> str:
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def duration(seconds: float) -> str:
    for unit, length, upto in (("s", 1.0, 90.0), ("min", 60.0, 5400.0), ("h", 3600.0, 48 * 3600.0)):
        if seconds < upto:
            return f"{seconds / length:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _cluster(plan: Plan) -> str:
    cpus, gpus = (sum(column) for column in zip(*plan.nodes, strict=True))
    where = f"{len(plan.nodes)} node{'' if len(plan.nodes) == 1 else 's'}"
    machines = f"{where} of {plan.nodes[0][1]:.0f} GPUs, assumed, for here are none" if plan.assumed_nodes else (
        f"this machine, {cpus:.0f} cores" + (f" and {gpus:.0f} GPUs" if gpus else "")
    )  # fmt: skip
    said: dict[str, Callable[[Device], str]] = {"GPU": _gpus, "CPU": _cores}
    return f"{machines}; {'; '.join(said[kind](device) for kind, device in plan.devices.items())}"


def _gpus(device: Device) -> str:
    if not isinstance(device, Gpus):
        return device.name
    peak, share = device.cluster.peak / 1e12, device.cluster.utilisation
    return f"GPUs as {device.name}: {peak:.0f} TFLOP/s at a utilisation of {share:.0%}, both assumed"


def _cores(device: Device) -> str:
    if not isinstance(device, Cores):
        return device.name
    return f"a core as measured now: {device.rate / 1e9:.0f} GFLOP/s in float32, {device.bandwidth / 1e9:.0f} GB/s"
