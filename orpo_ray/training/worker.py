"""What one Ray Train worker does: prepare, build, resume, run the loop, report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from ray.train.v2.api.validation_config import ValidationTaskConfig

from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import RewardConfig
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.prepare import prepare
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.reward import PackedRewardModel, centre, ensure_pad_token
from orpo_ray.modeling.scorer import load_scorer
from orpo_ray.objectives.registry import build_objective
from orpo_ray.training.engine import DeepSpeedEngine, Engine
from orpo_ray.training.export import export_adapter, export_model
from orpo_ray.training.loop import Line, State, build_schedule, run, scores
from orpo_ray.training.recorder import Recorder
from orpo_ray.training.reference import load_reference, with_reference
from orpo_ray.training.room import choose_recomputation
from orpo_ray.training.run_folder import MODEL_IN_CHECKPOINT, RunFolder, write_atomically, write_eval_scores


def train_worker(payload: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker. `payload["config"]`: the dumped `TrainConfig`.

    What the user has to mend is the same on every rank and on every try, so it is left in the run folder for
    the driver to say; any other error is Ray Train's to retry.
    """
    config = TrainConfig.model_validate(payload["config"])
    try:
        _train(config)
    except UserError as error:
        if ray.train.get_context().get_world_rank() == 0:
            write_atomically(RunFolder(config.run_dir).failure, str(error))


def _train(config: TrainConfig) -> None:
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed looks for one
    tokenizer = load_tokenizer(config.model)
    data = prepare(config, tokenizer)
    objective = build_objective(config.objective)
    if objective.model == "reward":
        ensure_pad_token(tokenizer)
    train_pairs, held_out = data.train, data.eval
    if objective.needs_reference:
        train_pairs, held_out = _with_reference(config, device, train_pairs, held_out)
    policy = load_scorer(objective.model, config.model, seed=config.seed).to(device)
    context = ray.train.get_context()
    ranks, ranks_here = context.get_world_size(), context.get_local_world_size()
    set_recomputation(policy, choose_recomputation(policy, config, device, ranks=ranks, ranks_here=ranks_here))
    engine = DeepSpeedEngine(policy, config, device)
    state = _resume(engine)
    folder = RunFolder(config.run_dir)
    recorder = Recorder(folder, resumed_at=state.step) if engine.rank == 0 else None
    total_steps = build_schedule(config, len(train_pairs)).total_steps

    class ReportToRay:
        """The loop's `Sink`: rank 0 writes the run folder, checkpoints go through Ray Train."""

        def metrics(self, line: Line) -> None:
            if recorder:
                recorder.write(line)

        def best_model(self, engine: Engine, evaluation: Line, table: torch.Tensor) -> None:
            centred = isinstance(config.objective, RewardConfig) and config.objective.centre
            mean = float(scores(engine, config, objective, train_pairs)[0][:, 1:].mean()) if centred else 0.0
            weights = engine.weights()
            if weights is not None:
                exported = merged_weights(policy.model, weights)
                if isinstance(policy, PackedRewardModel) and centred:
                    centre(policy, mean, exported)
                write_eval_scores(folder.eval_scores, held_out, table)
                export_model(folder.model, policy.model, exported, tokenizer, config, evaluation, total_steps)
                if config.model.lora is not None and config.model.has_weights:  # else there is no base to load it on
                    export_adapter(folder.adapter, policy.model, weights, exported, tokenizer, config)

        def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
            # Every rank hands in its own shards; Ray merges the folders under one name.
            with tempfile.TemporaryDirectory() as shards:
                engine.save(Path(shards), asdict(state))
                if config.eval.win_rate is not None:
                    weights = engine.weights()
                    if weights is not None:
                        whole = {"step": state.step, **line}
                        target = Path(shards) / MODEL_IN_CHECKPOINT
                        exported = merged_weights(policy.model, weights)
                        export_model(target, policy.model, exported, tokenizer, config, whole, total_steps)
                ray.train.report(
                    {**line, "best_step": state.best_step, "best_eval_loss": state.best_eval_loss},
                    checkpoint=Checkpoint.from_directory(shards),
                    checkpoint_dir_name=f"step-{state.step:08d}",
                    validation=config.eval.win_rate is not None
                    and ValidationTaskConfig(fn_kwargs={"step": state.step}),
                )

    run(engine, config, train_pairs, held_out, ReportToRay(), state)
    if recorder:
        recorder.close()


def _with_reference(config: TrainConfig, device: torch.device, *parts: PairDataset) -> list[PairDataset]:
    """The pairs with their reference log-probs; the reference is gone again when this returns."""
    # The reference is what training starts from, before it has adapters.
    plain = config.model.model_copy(update={"lora": None})
    policy = load_reference(config.model_copy(update={"model": plain}), device)
    return [
        with_reference(
            part,
            policy,
            config.cache_dir / "reference",
            rank=torch.distributed.get_rank(),
            ranks=torch.distributed.get_world_size(),
            budget=config.train.tokens_per_microbatch,
            barrier=torch.distributed.barrier,
        )
        for part in parts
    ]


def _resume(engine: Engine) -> State:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return State()
    with checkpoint.as_directory() as folder:
        return State(**engine.load(Path(folder)))
