"""`orpo-ray train`: from a configuration to a finished run folder, through Ray Train."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn

from orpo_ray.cluster import allocator
from orpo_ray.cluster.connection import connect, connect_if_ready
from orpo_ray.cluster.groups import waiting_workers
from orpo_ray.cluster.hosts import Marks, marked
from orpo_ray.cluster.share import cluster_nodes, cpus_of_a_worker, require_gpus, too_few_gpus, uses_gpus
from orpo_ray.cluster.waiting import saying_what_waits
from orpo_ray.config import TrainConfig
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.errors import Diverged, UserError, want_of_memory
from orpo_ray.modeling.loading import check_fit, load_tokenizer, require_embeddings
from orpo_ray.objectives.registry import build_objective
from orpo_ray.storage.checkpoints import open_filesystem
from orpo_ray.storage.driver_lock import is_lost, only_driver
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.storage.run_folder import RunFolder, join_files, require_kept, write_atomically
from orpo_ray.telemetry.phases import phase
from orpo_ray.telemetry.trackers import require_trackers
from orpo_ray.terminal import Console
from orpo_ray.training import determinism
from orpo_ray.training.metric_names import require_metrics
from orpo_ray.training.outcome import Outcome
from orpo_ray.training.progress import progress_bar
from orpo_ray.training.remarks import cut_answers, fallen_margin, remarks
from orpo_ray.training.reopening import reopened
from orpo_ray.training.rollout_checks import require_rewards
from orpo_ray.training.source import schedule_of
from orpo_ray.training.starting import with_merged_adapters
from orpo_ray.training.stopping import StopRequest, saving_when_stopped

_SECONDS_TO_BE_SEEN = 60.0  # that a network filesystem may take to show what a worker has written

Validation = Callable[..., dict[str, Any]]
"""Asks a checkpoint what it is worth: `(checkpoint, *, config, step)` to metrics. Ray Train runs it as a task."""


def train(
    config: TrainConfig,
    console: Console | None = None,
    validation: Validation | None = None,
    *,
    wait: bool = False,
    stop: StopRequest | None = None,
) -> RunFolder:
    """Train, or continue, the run of `config`; returns its folder.

    `validation` is called, beside training, with every checkpoint where `eval.win_rate` is set. A finished run is
    left as it is, or gets more steps (see `reopening`). Raises `KeyboardInterrupt` where it was stopped by Ctrl-C,
    SIGTERM or `stop`, its checkpoint saved; `UserError` for what the user has to mend: data, model, a folder that holds
    another run or that another driver is at work on (`wait`: until that one has gone), a loss that stops being finite.
    """
    console = console or Console(stderr=True)
    require_trackers(config.trackers)
    folder = RunFolder(config.run_dir)
    open_filesystem(config.checkpoints_location)  # or workers find out that nobody serves it, when all is loaded
    require_gpus(config.scaling, config.cpus)
    connect_if_ready()  # workers' imports go on while the data is read
    with phase("data"):
        starting = with_merged_adapters(config, lambda text: console.say(f"{config.name}: {text}"))
        require_metrics(config, [config.train.keep_by])
        data = prepare_data(starting, console)
        require_metrics(config, [config.train.keep_by], data.eval)
        if starting.rollouts is not None:
            said = require_rewards(starting, data)
            data = replace(data, remarks=(*data.remarks, *said))
    with only_driver(folder.path, console, wait=wait):
        compared = validation if config.eval.win_rate is not None else None
        _train(config, starting, folder, data, console, compared, stop or StopRequest())
    return folder


def _train(
    config: TrainConfig,
    starting: TrainConfig,
    folder: RunFolder,
    data: PreparedData,
    console: Console,
    validation: Validation | None,
    stop: StopRequest,
) -> None:
    schedule = schedule_of(config, data.train)
    folder.open_for(config)
    if folder.finished and not reopened(folder, config, schedule.total_steps, data.digest, console):
        return
    if data.quarantine:
        join_files(folder.quarantine, data.quarantine)
    console.say(
        f"{config.name}: {data.train.amount()} to train on, {data.eval.amount()} held out{_apart(data)}, "
        f"{schedule.total_steps} steps of {config.train.global_batch_size} {data.train.unit}, "
        f"{_workers(config)} worker(s)"
    )
    if starting.model != config.model:
        console.say(
            f"{config.name}: starts from the adapter {config.model.name_or_path}, merged into its base in "
            f"{starting.model.name_or_path}"
        )
    for remark in [*data.remarks, *remarks(config, schedule)]:
        console.say(f"{config.name}: {remark}")
    for remark in data.remarks:
        folder.note_once(remark)
    if cut := cut_answers(config, data):
        console.say(f"{config.name}: {cut}")
        folder.note_once(cut, warning=True)
    with phase("connecting to Ray"):
        connect(config.cpus)
    started = time.monotonic()
    try:
        with (
            folder.without_model_to_draw_from(),
            marked(shared_folders(config)) as marks,
            progress_bar(folder, config.name, schedule.total_steps, console),
            saving_when_stopped(stop, console, config.name, lambda: is_lost(folder.path)) as stopping,
        ):
            outcome = _fit(config, starting, folder, data, validation, stop, marks, console)
    except KeyboardInterrupt:
        console.say(f"{config.name}: {_where_it_stopped(folder)}")
        raise
    require_kept(folder, config.train.keep, patience=_SECONDS_TO_BE_SEEN)
    _finish(config, folder, data, outcome, time.monotonic() - started)
    kept = {"best": "", "last": ", the last", "both": f", the last in {folder.model_last}"}[config.train.keep]
    console.say(f"{config.name}: done; the model is in {folder.model}{kept}")
    evaluations = read_metrics(folder.metrics).values() if folder.metrics.is_file() else ()
    kept_step = None if config.train.keep == "last" else outcome.best_step
    if fallen := fallen_margin(config.objective.name, evaluations, kept_step):
        console.say(f"{config.name}: {fallen}")
    if stopping.asked:
        raise KeyboardInterrupt  # to stop what comes after it


def prepare_data(config: TrainConfig, console: Console) -> PreparedData:
    """Read and tokenise the pairs, or find them in the cache. `config` names whole models, no adapters (see
    `with_merged_adapters`)."""
    tokenizer = load_tokenizer(config.model)
    check_fit(config.model, config.data.max_length)
    columns = (SpinnerColumn(), TextColumn("reading and tokenising: {task.completed} records"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("data", total=None)
        data = prepare(config, tokenizer, progress=lambda records: progress.update(task, completed=records))
    require_embeddings(config.model, tokenizer, data.highest)
    return data


def shared_folders(config: TrainConfig) -> dict[str, str]:
    """Folders and URLs where workers meet, by the keys that name them."""
    folders, checkpoints = {"storage.path": str(config.run_dir)}, config.checkpoints_location
    if not checkpoints.startswith(folders["storage.path"]):
        folders["storage.checkpoints" if config.storage.checkpoints else "storage.mirror"] = checkpoints
    if build_objective(config.objective).needs_reference and config.rollouts is None:  # each rank computes a part of it
        folders["storage.cache"] = str(config.cache_dir)
    return folders


def _apart(data: PreparedData) -> str:
    return "" if data.unseen is None else f" and {data.unseen.amount()} that choose nothing"


def _workers(config: TrainConfig) -> str:
    fewest, most = config.scaling.fewest_workers, config.scaling.most_workers
    return str(most) if fewest == most else f"{fewest} to {most}"


def _fit(
    config: TrainConfig,
    starting: TrainConfig,
    folder: RunFolder,
    data: PreparedData,
    validation: Validation | None,
    stop: StopRequest,
    marks: Marks,
    console: Console,
) -> Outcome:
    """Run Ray Train's controller to the end of training. `starting`: `config` with whole models for adapters; `marks`:
    of the folders that all workers have to see."""
    # The controller polls workers this often: so soon it notices that one is lost, or that all are done.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with phase("imports of Ray Train"):
        import ray
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.validation_config import ValidationConfig, ValidationTaskConfig
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from orpo_ray.training.controlled import ControlledTrainer
        from orpo_ray.training.lost_workers import LostWorkers
        from orpo_ray.training.process_group import GroupConfig
        from orpo_ray.training.worker import train_worker

    here = ray.get_runtime_context().get_node_id()
    nodes = cluster_nodes()
    all_gpus = int(sum(gpus for _, gpus in nodes))
    use_gpu = uses_gpus(config.scaling, all_gpus)
    if idle := too_few_gpus(config.scaling, all_gpus):
        console.say(f"{config.name}: {idle}")
        folder.note(idle, warning=True)
    cpus = cpus_of_a_worker(config.scaling, nodes, spare=config.spare_cpus)
    gpus = config.scaling.gpus_per_worker if use_gpu else 0
    payload = {"config": config.with_absolute_paths().model_dump(mode="json", by_alias=True)}
    trainer = ControlledTrainer(
        train_worker,
        train_loop_config={
            **payload,
            "starting": starting.with_absolute_paths().model_dump(mode="json", by_alias=True),
            "digest": config.digest(),
            "fingerprints": data.fingerprints,
            "stop": stop.name,
            "marks": marks,
            "paths": config.local_paths() | starting.local_paths(),
        },
        scaling_config=ScalingConfig(
            num_workers=config.scaling.num_workers,
            elastic_resize_monitor_interval_s=config.scaling.resize_interval,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if use_gpu else {})},
        ),
        torch_config=GroupConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            storage_path=str(folder.path),
            name=folder.ray.name,
            checkpoint_config=CheckpointConfig(num_to_keep=1),  # models that wait for validation are kept besides
            failure_config=FailureConfig(max_failures=config.scaling.max_failures),
            worker_runtime_env={"env_vars": environment_of_workers(config, use_gpu)},
            callbacks=[LostWorkers(folder.path)],
        ),
        validation_config=validation
        and ValidationConfig(
            fn=validation,
            task_config=ValidationTaskConfig(fn_kwargs=payload),
            # It writes into the run's folder, which need not be on hosts that no worker is on: so on this one.
            ray_remote_kwargs={"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)},
        ),
    )
    waiting = waiting_workers(config.scaling.fewest_workers, cpus, gpus)
    try:
        with saying_what_waits(waiting, lambda text: console.say(f"{config.name}: {text}")):
            outcome: Outcome = trainer.fit().return_value
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except Exception as error:
        if lack := want_of_memory(str(error)):
            raise UserError(
                f"{config.name}: {lack}; lower train.tokens_per_microbatch, which changes no result, or "
                "scaling.num_workers, and the same command goes on"
            ) from error
        raise
    if outcome.mistake:
        raise (Diverged if outcome.diverged else UserError)(outcome.mistake)
    if outcome.stopped:
        raise KeyboardInterrupt
    return outcome


def environment_of_workers(config: TrainConfig, use_gpu: bool) -> dict[str, str]:
    """What workers have to find in their environment as they start."""
    if not use_gpu:
        return allocator.ENVIRONMENT
    return determinism.ENVIRONMENT if config.train.deterministic else {}


def _where_it_stopped(folder: RunFolder) -> str:
    step, newest = folder.last_steps()[0], folder.last_checkpoint
    if step < 0:
        return "stopped before its first step"
    if newest is None:
        return f"stopped at step {step}; no checkpoint is saved"
    if newest["step"] == step:
        return f"stopped at step {step}; its checkpoint is saved"
    return f"stopped at step {step}; the last checkpoint is that of step {newest['step']}"


def _finish(config: TrainConfig, folder: RunFolder, data: PreparedData, outcome: Outcome, seconds: float) -> None:
    summary = {
        "name": config.name,
        "status": "finished",
        "steps": outcome.step,
        "best_step": outcome.best_step,
        "keep_by": config.train.keep_by,
        config.train.keep_by: outcome.best_value,
        "seconds": round(seconds, 1),
        "pairs": len(data.train),
        "held_out_pairs": len(data.eval),
        "unseen_pairs": 0 if data.unseen is None else len(data.unseen),
        "workers": outcome.workers,
    }
    write_atomically(folder.summary, json.dumps(summary, indent=2) + "\n")
