"""`orpo-ray sweep`: from a configuration to a finished sweep folder, through Ray Tune."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from orpo_ray.cluster.connection import connect
from orpo_ray.cluster.groups import groups_without_room
from orpo_ray.cluster.hosts import marked, require_on_nodes
from orpo_ray.cluster.share import cluster_nodes, cpus_of_a_worker, require_gpus, uses_gpus
from orpo_ray.cluster.waiting import saying_what_waits
from orpo_ray.config import SweepConfig
from orpo_ray.errors import UserError
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.telemetry.metrics import sweep_changed
from orpo_ray.telemetry.trackers import require_trackers
from orpo_ray.terminal import Console
from orpo_ray.training.launcher import prepare_data
from orpo_ray.training.metric_names import require_metrics
from orpo_ray.training.remarks import cut_answers, remarks
from orpo_ray.training.source import schedule_of
from orpo_ray.training.starting import with_merged_adapters
from orpo_ray.tuning.board import board
from orpo_ray.tuning.comparable import lengths, require_known, steps_of_trials
from orpo_ray.tuning.finalists import compare, unseen_records
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger, Status, Trial, left_by
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import summary, write_best, write_results, write_summary
from orpo_ray.tuning.room import Share, concurrency, gpus_beside


def sweep(config: SweepConfig, console: Console | None = None) -> SweepFolder:
    """Run the trials of `config`, or go on where an earlier try stopped, and choose the best; returns the folder.

    Raises `UserError` for what the user has to mend: data, model, a folder that holds another sweep or that another
    driver is at work on, no trial that came to its end.
    """
    console = console or Console(stderr=True)
    folder = SweepFolder(config)
    with only_driver(folder.path, console):
        _sweep(config, folder, console)
    return folder


def _sweep(config: SweepConfig, folder: SweepFolder, console: Console) -> None:
    folder.open_for(config)
    held = folder.held
    for index in folder.begun:
        left_by(folder, index, config)  # mistakes are told here, before a trial begins
    if folder.is_finished(config):
        console.say(f"{folder.path}: already finished")
        return
    first = folder.training(0, config.first_point)
    require_trackers(first.trackers)
    require_gpus(first.scaling, config.cpus)
    # Once: all trials find the tokens in the cache.
    require_known(config, folder)
    data = prepare_data(with_merged_adapters(first), console)
    require_metrics(first, config.directions, data.eval)
    schedule = schedule_of(first, data.train)
    total_steps = schedule.total_steps
    records = [] if config.finalists is None else unseen_records(config, data)
    connect(config.cpus)
    import ray

    from orpo_ray.tuning.search import search

    at_a_time = concurrency(config, first, ray.cluster_resources())
    all_workers = first.scaling.model_copy(update={"num_workers": first.scaling.most_workers * at_a_time})
    cpus = cpus_of_a_worker(all_workers, cluster_nodes(), spare=first.spare_cpus * at_a_time)
    all_gpus = int(ray.cluster_resources().get("GPU", 0))
    share = Share(cpus, gpus_beside(first, at_a_time, all_gpus))
    gpus = uses_gpus(first.scaling, all_gpus) and first.scaling.gpus_per_worker
    with marked({"storage.path": str(folder.path)}) as marks:
        require_on_nodes(first.local_paths(), cpus, gpus, marks)
    lag = held.get("lag", at_a_time)
    spent = held.get("seconds", 0.0)
    steps = steps_of_trials(config, data.train)
    by = f"{config.searcher} search" + ("" if config.scheduler == "none" else f" and {config.scheduler}")
    console.say(f"{config.name}: {config.number_of_trials} trials of {steps}, {at_a_time} at a time, by {by}")
    for remark in [*data.remarks, *remarks(first, schedule), *filter(None, [cut_answers(first, data)])]:
        console.say(f"{config.name}: {remark}")
    if config.unlike_lengths:
        seen = "pairs" if first.rollouts is None else "prompts"
        console.say(f"{config.name}: trials see other numbers of {seen} ({', '.join(config.unlike_lengths)})")
    if config.finalists is not None and len(records) < config.finalists.prompts:
        console.say(
            f"{config.name}: finalists answer {len(records)} prompts, not finalists.prompts="
            f"{config.finalists.prompts}: data.eval has no more that rank nothing"
        )
    ledger = Ledger(config, folder, total_steps, lengths(config, folder, data, console))
    started = time.monotonic()

    def save(winner: Trial | None = None, rates: list[dict[str, Any]] | None = None, finished: str = "") -> None:
        write_results(folder, ledger)
        found = summary(config, ledger, total_steps, winner, rates or [])
        own = {"lag": lag, "seconds": spent + time.monotonic() - started, "finished": finished}
        write_summary(folder, found | own)

    with board(config, ledger, console) as show:

        def changed() -> None:
            keep_the_best(config, folder, ledger)
            save()
            show()
            counts = Counter(ledger.status(trial) for trial in ledger.trials)
            best = next((ledger.value(trial) for trial in ledger.ranking()), None)
            sweep_changed(config.name, {status: counts[status] for status in get_args(Status)}, config.metric, best)

        folder.ray.mkdir(mode=0o700, exist_ok=True)  # Ray Tune writes its trials' configurations there as they are
        seconds = None if config.hours is None else max(1.0, config.hours * 3600 - spent)
        try:
            with saying_what_waits(
                lambda: groups_without_room()[0], lambda text: console.say(f"{config.name}: {text}")
            ):
                search(config, folder, ledger, searcher_of(config), at_a_time, lag, share, seconds, changed, console)
        finally:
            shutil.rmtree(folder.ray, ignore_errors=True)
    for trial in ledger.trials:
        ledger.refresh(trial.index)
    keep_the_best(config, folder, ledger)
    winner, rates = _winner(config, folder, ledger, records, console)
    write_best(folder, config, winner)
    save(winner, rates, finished=config.to_yaml())
    console.say(_verdict(config, ledger, winner, rates))


def keep_the_best(config: SweepConfig, folder: SweepFolder, ledger: Ledger) -> None:
    """Free what the trials that are over take on disk, but for the models of the best `keep`.

    A trial that has finished before an earlier one is over may yet turn out to have been stopped: it takes nobody's
    place, and keeps its model until then.
    """
    settled = ledger.first_over()
    finished = [trial for trial in ledger.ranking() if ledger.status(trial) == "finished"]
    kept = [trial for trial in finished if trial.index < settled][: config.keep]
    kept += [trial for trial in finished if trial.index >= settled]
    for trial in ledger.trials:
        if ledger.over(trial):
            folder.strip(trial.index, trial.settings, model=trial not in kept)


def _winner(
    config: SweepConfig, folder: SweepFolder, ledger: Ledger, records: Sequence[int], console: Console
) -> tuple[Trial, list[dict[str, Any]]]:
    finished = [trial for trial in ledger.ranking() if ledger.status(trial) == "finished"]
    if not finished:
        reason = next((trial.failure for trial in ledger.trials if trial.failure), "the budget ended before")
        raise UserError(f"{folder.path}: no trial came to its end; the first reason: {reason}")
    if config.finalists is None or len(finished) < 2:
        return finished[0], []
    indices = [trial.index for trial in finished[: config.finalists.count]]
    rates = compare(config, folder, indices, records, console)
    return ledger.trials[rates[0]["trial"]], rates


def _verdict(config: SweepConfig, ledger: Ledger, winner: Trial, rates: list[dict[str, Any]]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in winner.settings.items())
    value, unseen = ledger.value(winner), ledger.unseen(winner)
    said = f"{config.name}: trial {winner.index:03d} wins with {settings}: {config.metric} {value:.4g}"
    if unseen is not None:
        said += f", {unseen:.4g} on pairs that chose nothing"
    if rates:
        low, high = rates[0]["ci95"]
        apart = (
            "told apart from the runner-up" if rates[1]["behind"]["told_apart"] else "not told apart from the runner-up"
        )
        said += f", win-rate {rates[0]['win_rate']:.1%} ({low:.1%} to {high:.1%}), {apart}"
    return said
