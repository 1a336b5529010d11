"""What one Ray Train worker does: prepare, build, resume, run the loop, report."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import ray.train
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.cluster.hosts import Marks, look, this_host
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config import TrainConfig
from orpo_ray.config.identity import of_one_run
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.errors import Diverged, UserError
from orpo_ray.modeling.digests import frozen_digest, network_digest
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.parity import probe, require_same_numbers
from orpo_ray.modeling.reward import ensure_pad_token
from orpo_ray.modeling.scorer import load_scorer
from orpo_ray.objectives.registry import build_objective
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.run_folder import RunFolder, require_kept
from orpo_ray.telemetry.logs import at_step, log, log_as
from orpo_ray.telemetry.metrics import checkpoint_finished, run_and_trial
from orpo_ray.telemetry.phases import phase
from orpo_ray.training.agreement import on_all, require_same, sampled_digest
from orpo_ray.training.alarm import Alarm
from orpo_ray.training.deepspeed_engine import engine_for, local_rank
from orpo_ray.training.determinism import deterministic
from orpo_ray.training.engine import Engine, broadcast
from orpo_ray.training.loop import State, run
from orpo_ray.training.lost_workers import lost_connection
from orpo_ray.training.outcome import Outcome
from orpo_ray.training.recorder import Recorder
from orpo_ray.training.reference import load_reference, reference_name, with_reference
from orpo_ray.training.rollout_setup import Beside
from orpo_ray.training.room import choose_recomputation
from orpo_ray.training.run_sink import RunSink
from orpo_ray.training.saving import BASE, REFERENCE, Saver, choose, load, load_carried, require_same_weights
from orpo_ray.training.source import Arrays, PairSource, Source
from orpo_ray.training.stopping import Listener, StopRequest
from orpo_ray.training.watchdog import Watchdog


def train_worker(payload: dict[str, Any]) -> Outcome:
    """The function that Ray Train runs on every worker. `payload`: the dumped `TrainConfig`, paths made absolute, as
    `config`, and as `starting` with whole models for adapters; as `digest` that of the run's own; as `fingerprints`
    those of its data; as `stop` the name of the request to stop it; as `marks` those that the driver has left in the
    folders of the run, and as `paths` those of data and models, which are there on its host.

    What the user has to mend is the same on every try, and told by all ranks (`agreement.on_all`), so it is the
    outcome; any error is Ray Train's to retry.
    """
    config, starting = (TrainConfig.model_validate(payload[key]) for key in ("config", "starting"))
    context = ray.train.get_context()
    run, trial = run_and_trial(config.run_dir)
    log_as(run=run, trial=trial, role="trainer", rank=context.get_world_rank())
    log("worker started", ranks=context.get_world_size(), host=socket.gethostname(), process=os.getpid())
    try:
        on_all(lambda: _look(payload["marks"], payload["paths"]))
        with deterministic(config.train.deterministic):
            return _train(config, starting, payload["digest"], payload["fingerprints"], StopRequest(payload["stop"]))
    except UserError as error:
        log("worker ends", logging.ERROR, reason=str(error))
        return Outcome(mistake=str(error), diverged=isinstance(error, Diverged))
    except Exception as error:
        log("worker fails", logging.ERROR, reason=repr(error))
        if lost := lost_connection(error, this_host()):
            raise ConnectionError(lost) from error
        raise


def _train(
    config: TrainConfig, starting: TrainConfig, digest: str, fingerprints: Sequence[str], stop: StopRequest
) -> Outcome:
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed looks for one
        use_assigned_cpus()
    else:
        os.environ["LOCAL_RANK"] = local_rank(device)
    with phase("data"):
        tokenizer, data = on_all(lambda: _read(config, starting, fingerprints))
        require_same("data.train and data.eval", data.digest)
    objective = build_objective(config.objective)
    if objective.model == "reward":
        ensure_pad_token(tokenizer)
    train_pairs, held_out, unseen = data.train, data.eval, data.unseen
    folder, weights = RunFolder(config.run_dir), {}
    if objective.needs_reference and not objective.settings.rolls_out:
        with phase("reference"):
            parts = (train_pairs, held_out, *([] if unseen is None else [unseen]))
            (train_pairs, held_out, *apart), weights[REFERENCE] = _with_reference(starting, device, *parts)
            unseen = apart[0] if apart else None
    context = ray.train.get_context()
    leads = context.get_world_rank() == 0
    with phase("model"):
        warn = folder.note if leads else _say_nothing
        # Under ZeRO-3 the device need not hold all of it, and the engine takes it there.
        place = torch.device("cpu") if config.train.zero_stage == 3 else device
        policy = on_all(lambda: load_scorer(objective.model, starting.model, seed=config.seed, device=place, warn=warn))
        rollouts, memory_beside = None, 0
        if starting.rollouts is not None:
            rollouts = on_all(lambda: Beside.of(starting, policy, tokenizer, device, place, warn, leads=leads))
            for what, sampled in rollouts.same.items():
                require_same(what, sampled)
            memory_beside = rollouts.memory(config, device)
            policy, weights = rollouts.policy, weights | rollouts.digests
        if starting.model.has_weights:
            require_same(f"model.name_or_path: {starting.model.name_or_path}", sampled_digest(policy.model))
        if leads and (frozen := frozen_digest(policy.model)) is not None:
            weights[BASE] = frozen
    ranks, ranks_here = context.get_world_size(), context.get_local_world_size()
    level = choose_recomputation(policy, config, device, ranks=ranks, ranks_here=ranks_here, beside=memory_beside)
    set_recomputation(policy, level)
    with phase("engine"):
        whole = probe(policy, policy) if config.train.zero_stage == 3 else None
        engine = engine_for(policy, config, device)
        if whole is not None:
            require_same_numbers(config.model.name_or_path, policy, whole, probe(policy, engine.forward))
    kind = type(engine).__name__
    watchdog = Watchdog(engine, config.scaling.hang_timeout, folder.note)
    engine = watchdog.engine
    checkpoints = Checkpoints(config.checkpoints_location)
    digests: dict[str, Any] = {"config": digest, "data": data.digest, "weights": engine.broadcast(weights)}
    with phase("resume"):
        state, carried = _resume(config, engine, checkpoints, digests, folder)
    at_step(state.step)
    log(
        "training begins",
        pairs=len(train_pairs),
        held_out=len(held_out),
        device=str(device),
        engine=kind,
    )
    with phase("trackers"):
        due = state.evaluation_due
        recorder = Recorder(folder, config, resumed_at=state.step, evaluation_due=due) if engine.rank == 0 else None
    source: Source = (
        PairSource(engine, config, train_pairs, held_out, unseen)
        if rollouts is None
        else rollouts.source(engine, config, data, tokenizer, folder, ranks_here, checkpoints, state.source, carried)
    )

    def committed(step: int) -> None:
        log("checkpoint saved", checkpoint_step=step)
        folder.note_checkpoint(step, checkpoints.location)
        checkpoint_finished(folder.path, step)

    newest, best_ones = config.train.keep_checkpoints, config.train.keep_best_checkpoints
    with phase("memory for checkpoints"):
        saver = Saver(checkpoints, engine, newest, best_ones, folder.note, committed)
    listener = Listener(stop)
    alarm = Alarm(config.train.checkpoint_every_minutes, asked_to_stop=lambda: listener.heard)

    sink = RunSink(
        config, starting, source, policy, tokenizer, leads, digests, folder, recorder, saver, alarm, listener,
    )  # fmt: skip
    try:
        with listener.listening() if leads else nullcontext():
            sink.make_good(engine, state)
            run(engine, config, source, sink, state)
        saver.finish()
        if state.step < source.total_steps or state.evaluation_due:
            if leads:
                stop.note_saved()
            return Outcome(state.step, stopped=True)
    finally:
        watchdog.stop()
        if recorder:
            recorder.close()
    on_all(lambda: require_kept(folder, config.train.keep) if leads else None)
    log("training ends", best_step=state.best_step, best_by=state.best_by, best_value=state.best_value)
    return Outcome(state.step, state.best_step, state.best_value, engine.ranks)


def _look(marks: Marks, paths: dict[str, str]) -> None:
    """Raises `UserError`, naming this host, where it does not see what the driver's does."""
    if mistake := look(marks, paths):
        raise UserError(mistake)


def _read(config: TrainConfig, starting: TrainConfig, fingerprints: Sequence[str]) -> tuple[Tokenizer, PreparedData]:
    tokenizer = load_tokenizer(starting.model)
    return tokenizer, prepare(config, tokenizer, fingerprints=fingerprints)


def _say_nothing(text: str) -> None:
    """Another rank says it."""


def _with_reference(config: TrainConfig, device: torch.device, *parts: Pairs) -> tuple[list[Pairs], str]:
    """The pairs with their reference log-probs, and the reference's digest; it is gone again when this returns."""
    # The reference is what training starts from, before it has adapters.
    plain = config.model.model_copy(update={"lora": None})
    policy = on_all(lambda: load_reference(config.model_copy(update={"model": plain}), device))
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    require_same(reference_name(config), sampled_digest(policy.model))
    weights: str = broadcast(network_digest(policy.model, policy.model.state_dict()) if rank == 0 else "")
    with_log_probs = [
        with_reference(
            part,
            policy,
            config.cache_dir / "reference",
            weights=weights,
            rank=rank,
            ranks=ranks,
            budget=config.train.tokens_per_microbatch,
            barrier=torch.distributed.barrier,
        )
        for part in parts
    ]
    return with_log_probs, weights


def _resume(
    config: TrainConfig, engine: Engine, checkpoints: Checkpoints, digests: dict[str, Any], folder: RunFolder
) -> tuple[State, Arrays]:
    """Continue from the newest checkpoint that is whole; returns what the source of steps carried, too. Raises
    `UserError` where that is one of another run."""
    manifest = choose(checkpoints, engine, folder.note)
    if manifest is None:
        if lost := folder.last_checkpoint:
            raise UserError(
                f"{checkpoints.location}: the run's checkpoints are gone, the last of which was that of step "
                f"{lost['step']} in {lost['location']}; restore them, or remove {folder.path} to train from the start"
            )
        return State(best_by=config.train.keep_by), {}
    allowed = config.resume.allow_changes
    # The driver has compared config.yaml, key by key.
    if not of_one_run(manifest.config, digests["config"]) and not allowed:
        raise UserError(f"{checkpoints.folder(manifest.step)}: was saved by a run with other settings")
    if manifest.data != digests["data"] and not {"data.train", "data.eval"} & {*allowed}:
        raise UserError(
            f"data.train or data.eval: other pairs than those that the run began with (step {manifest.step} was saved "
            "with those); restore them, choose another name=..., or continue with 'resume.allow_changes=[data.train]'"
        )
    require_same_weights(manifest, digests["weights"], allowed)
    try:
        state = State.from_json(manifest.state)
        if state.step != manifest.step:
            raise ValueError(f"step is {state.step}, of a checkpoint of step {manifest.step}")
    except ValueError as error:
        raise UserError(f"{checkpoints.folder(manifest.step)}/manifest.json: state: {error}") from None
    if state.best_by != config.train.keep_by:  # values of the two cannot be compared
        if engine.rank == 0 and state.best_step is not None:
            folder.note(
                f"the best model was told by {state.best_by} so far, and is by {config.train.keep_by} from now on"
            )
        state.best_by, state.best_step, state.best_value = config.train.keep_by, None, None
    load(engine, checkpoints, manifest)
    return state, load_carried(engine, checkpoints, manifest)
