"""What one Ray Train worker does: prepare, build, resume, run the loop, report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from orpo_ray.config import TrainConfig
from orpo_ray.data.prepare import prepare
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.training.engine import DeepSpeedEngine, Engine
from orpo_ray.training.export import export_model
from orpo_ray.training.loop import Line, State, build_schedule, run
from orpo_ray.training.recorder import Recorder
from orpo_ray.training.run_folder import RunFolder, write_atomically


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
    policy = load_policy(
        config.model, seed=config.seed, gradient_checkpointing=config.train.gradient_checkpointing
    )
    engine = DeepSpeedEngine(policy, config, device)
    state = _resume(engine)
    folder = RunFolder(config.run_dir)
    recorder = Recorder(folder, resumed_at=state.step) if engine.rank == 0 else None
    total_steps = build_schedule(config, len(data.train)).total_steps

    class ReportToRay:
        """The loop's `Sink`: rank 0 writes the run folder, checkpoints go through Ray Train."""

        def metrics(self, line: Line) -> None:
            if recorder:
                recorder.write(line)

        def best_model(self, engine: Engine, evaluation: Line) -> None:
            weights = engine.weights()
            if weights is not None:
                export_model(
                    folder.model, policy.model, weights, tokenizer, config, evaluation, total_steps
                )

        def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
            # Every rank hands in its own shards; Ray merges the folders under one name.
            with tempfile.TemporaryDirectory() as shards:
                engine.save(Path(shards), asdict(state))
                ray.train.report(
                    {**line, "best_step": state.best_step, "best_eval_loss": state.best_eval_loss},
                    checkpoint=Checkpoint.from_directory(shards),
                    checkpoint_dir_name=f"step-{state.step:08d}",
                )

    run(engine, config, data.train, data.eval, ReportToRay(), state)
    if recorder:
        recorder.close()


def _resume(engine: Engine) -> State:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return State()
    with checkpoint.as_directory() as folder:
        return State(**engine.load(Path(folder)))


