"""The doctor's round: every check, on this machine or on every node of the cluster of `RAY_ADDRESS`."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator

from orpo_ray.cluster.connection import connect
from orpo_ray.config import ScalingConfig, StorageConfig
from orpo_ray.doctor import checks, reach, storage
from orpo_ray.doctor.access import access, alone
from orpo_ray.doctor.finding import Finding
from orpo_ray.doctor.nodes import Nodes, RayNodes, Silent, ThisMachine
from orpo_ray.doctor.ports import ports
from orpo_ray.doctor.probe import NodeReport, now, probe
from orpo_ray.terminal import Console

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def examine(places: StorageConfig, scaling: ScalingConfig | None) -> Iterator[Finding]:
    """Findings as they come. `places`: the run's storage; `scaling`: what it wants of the cluster, where it is one."""
    if not os.environ.get("RAY_ADDRESS"):
        yield alone()
        yield from ports()
        yield from _on(ThisMachine(), places)
        return
    found = access(os.environ)
    yield from found
    if found[0].verdict == "FAIL":
        return
    try:
        connect()
    except RuntimeError as error:  # another version of Ray or Python than the cluster's
        fix = "install the same lock (requirements/) here as on the cluster"
        yield Finding("FAIL", "versions", " ".join(str(error).split()), fix)
        return
    import ray

    if scaling is not None:
        yield checks.room(scaling, ray.cluster_resources())
    yield from _on(RayNodes(), places)


def print_findings(findings: Iterator[Finding], console: Console) -> int:
    """A line each, and one more where there is something to do; returns the number of `FAIL`."""
    failed = 0
    for finding in findings:
        colour = _COLOURS[finding.verdict] if console.is_terminal else None
        console.print(f"{finding.verdict:<4}", style=colour, end="  ")
        console.say(f"{finding.check:<13}  {finding.found}")
        if finding.fix:
            console.say(f"{'':19}  -> {finding.fix}")
        failed += finding.verdict == "FAIL"
    return failed


def _on(nodes: Nodes, places: StorageConfig) -> Iterator[Finding]:
    folders = [str(places.run_dir("")), str(places.cache_dir)]
    temporary = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    answers = nodes.ask(probe, [(node, ([*dict.fromkeys([*folders, temporary])],)) for node in nodes.names])
    reports: dict[str, NodeReport] = {}
    for node, answer in zip(nodes.names, answers, strict=True):
        if isinstance(answer, Silent):
            fix = "install orpo_ray there, or ship it with ray job submit --working-dir; else read its raylet's log"
            yield Finding("FAIL", "node", f"{node}: {answer}", fix)
        else:
            reports[node] = answer
    if not reports:
        return
    yield from checks.versions(reports)
    yield from checks.compiler(reports)
    yield from checks.gpus(reports, nodes.gpus)
    yield from checks.shared_memory(reports)
    yield from checks.disk(reports)
    shared = [*folders, *(place for place in (places.checkpoints, places.mirror) if place is not None)]
    for location in dict.fromkeys(shared):
        yield from _storage(nodes, list(reports), location)
    if len(reports) > 1:
        yield from checks.clocks(_clocks(nodes, list(reports)))
        yield from checks.names(reports)
    yield _network(nodes, reports, "gloo")
    if all(report.torch_gpus for report in reports.values()) and len(reports) > 1:
        yield _network(nodes, reports, "nccl")


def _storage(nodes: Nodes, names: list[str], location: str) -> list[Finding]:
    token = secrets.token_hex(4)
    answers = nodes.ask(storage.write, [(node, (location, node, token)) for node in names])
    written = {n: ([], str(a)) if isinstance(a, Silent) else a for n, a in zip(names, answers, strict=True)}
    errors = {node: error for node, (_, error) in written.items()}
    unseen: dict[str, dict[str, str]] = {}
    if not any(errors.values()):
        seen = nodes.ask(storage.unseen, [(node, (location, names, token)) for node in names])
        told = zip(names, seen, strict=True)
        unseen = {n: dict.fromkeys(names, str(a)) if isinstance(a, Silent) else a for n, a in told}
    nodes.ask(storage.remove_file, [(node, (location, node, token)) for node in names])
    nodes.ask(storage.remove_folders, [(node, (made,)) for node, (made, _) in written.items()])
    return storage.judge(location, errors, unseen)


def _clocks(nodes: Nodes, names: list[str]) -> dict[str, tuple[float, float]]:
    """One at a time: what an answer takes is how far the comparison may be off."""
    offsets = {}
    for node in names:
        before = time.time()
        (there,) = nodes.ask(now, [(node, ())])
        after = time.time()
        if not isinstance(there, Silent):
            offsets[node] = (there - (before + after) / 2, (after - before) / 2)
    return offsets


def _network(nodes: Nodes, reports: dict[str, NodeReport], backend: str) -> Finding:
    """A process on each node; two on one that is alone."""
    places = list(reports) if len(reports) > 1 else [*reports] * 2
    first = places[0]
    address = "127.0.0.1" if nodes.gpus is None else first.partition("#")[0]
    arguments = (len(places), address, reports[first].free_port)
    calls = [(node, (backend, rank, *arguments)) for rank, node in enumerate(places)]
    answers = nodes.ask(reach.all_reduce, calls, with_gpu=backend == "nccl")
    who = [f"{node} ({rank})" for rank, node in enumerate(places)] if len(reports) == 1 else places
    return reach.judge(backend, {n: str(a) for n, a in zip(who, answers, strict=True)})
