"""What becomes of a run's results as they come: its folder, its models, its checkpoints, and who hears of them."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train.v2.api.validation_config import ValidationTaskConfig
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import RewardConfig
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import PackedRewardModel, centre
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.storage.checkpoints import Manifest
from orpo_ray.storage.run_folder import LAST, MODEL_IN_CHECKPOINT, RunFolder, kept_model, write_eval_scores
from orpo_ray.telemetry.logs import at_step, log
from orpo_ray.training.alarm import Alarm
from orpo_ray.training.card import hardware_of
from orpo_ray.training.engine import Engine
from orpo_ray.training.export import export_adapter, export_model
from orpo_ray.training.loop import Line, Sink, State, Wanted, cost, hear
from orpo_ray.training.measuring import mean_reward
from orpo_ray.training.recorder import Recorder
from orpo_ray.training.saving import Saver
from orpo_ray.training.source import PairSource, Source
from orpo_ray.training.stopping import Listener

_NOTICE_SECONDS = 60.0  # where a notice does not say when


@dataclass
class RunSink(Sink):
    """Rank 0 writes the run folder, every rank its part of a checkpoint."""

    config: TrainConfig
    starting: TrainConfig
    """The same with whole models for adapters."""
    source: Source
    policy: Scorer
    tokenizer: PreTrainedTokenizerBase
    leads: bool
    """On rank 0."""
    digests: dict[str, Any]
    """Of what a run that goes on from a checkpoint has to have."""
    folder: RunFolder
    recorder: Recorder | None
    """Where this leads."""
    saver: Saver
    alarm: Alarm
    listener: Listener

    def metrics(self, line: Line) -> None:
        at_step(line["step"])
        self.listener.has_trained |= "loss" in line
        if self.recorder:
            self.recorder.write(line)
            if "loss" not in line:
                log("evaluation", **{key: value for key, value in line.items() if key != "step"})

    def best_model(self, engine: Engine, evaluation: Line, table: Tensor | None) -> bool:
        kept = self.config.train
        return kept.keep == "last" or self._keep(engine, evaluation, table, self.folder.model, kept.best)

    def last_model(self, engine: Engine, evaluation: Line, table: Tensor | None) -> None:
        if self.config.train.keep != "best":
            self._keep(engine, evaluation, table, self._place_of_last, LAST)

    @property
    def _place_of_last(self) -> Path:
        return self.folder.model if self.config.train.keep == "last" else self.folder.model_last

    def _keep(self, engine: Engine, evaluation: Line, table: Tensor | None, target: Path, why: str) -> bool:
        config, folder, model = self.config, self.folder, self.policy.model
        pairs = self.source if isinstance(self.source, PairSource) else None
        centred = isinstance(config.objective, RewardConfig) and config.objective.centre
        mean = mean_reward(engine, config, pairs.objective, pairs.train) if pairs and centred else None
        weights = engine.weights()
        kept = True
        if weights is not None:
            try:
                exported = merged_weights(model, weights)
                if isinstance(self.policy, PackedRewardModel) and mean is not None:
                    centre(self.policy, mean, exported)
                if target == folder.model and pairs and table is not None:
                    write_eval_scores(folder.eval_scores, pairs.held_out, table)
                export_model(
                    target, model, exported, self.tokenizer, config, evaluation, self.source.total_steps, why,
                    hardware_of(engine.device, engine.ranks),
                )  # fmt: skip
                if config.model.lora is not None and config.model.has_weights:  # else there is no base to load it
                    adapter = folder.adapter if target == folder.model else folder.adapter_last
                    export_adapter(adapter, model, weights, exported, self.tokenizer, self.starting)
            except (OSError, SafetensorError) as error:
                folder.note(f"the model of step {evaluation['step']} was not kept: {error}")
                kept = False
        return bool(engine.broadcast(kept))

    def make_good(self, engine: Engine, state: State) -> None:
        """A folder that came from a copy may lack the best model so far, or the last: those of now are they then."""
        train, best = self.config.train, self.config.train.best
        lacks_best = state.best_step is not None and not _is_there(self.folder.model, best, state.best_step)
        ended = state.step == self.source.total_steps and not state.evaluation_due
        lacks_last = ended and not _is_there(self._place_of_last, LAST, state.step)
        lost = (train.keep != "last" and lacks_best, train.keep != "best" and lacks_last)
        lost_best, lost_last = engine.broadcast(lost)
        if not (lost_best or lost_last):
            return
        found = self.source.evaluate(state.step, lambda: hear(engine, self) == Wanted.LAST_CHECKPOINT)
        if found is None:  # the loop hears it, too, and whoever continues makes it good
            state.evaluation_due |= ended
            return
        if self.leads and lost_best:
            instead = f"that of step {state.step} is kept in its place"
            self.folder.note(f"the model of step {state.best_step} is lost; {instead}")
        line, table = found
        evaluation = {"step": state.step, **line}
        if lost_best and self.best_model(engine, evaluation, table):
            state.best_step, state.best_value = state.step, line[train.keep_by]
        if lost_last:
            self.last_model(engine, evaluation, table)

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        reached = cost(self.config, line)
        manifest = Manifest(state.step, asdict(state), engine.updates, **self.digests, cost=reached, files={})
        self.saver.begin(manifest, self.source.carried(state.step))
        if self.alarm.urgent:
            self.saver.finish()
        self.alarm.reset()

    def compare(self, engine: Engine, state: State, line: Line) -> None:
        """Hand the model to Ray Train's validation, which works beside training."""
        config, model = self.config, self.policy.model
        if config.eval.win_rate is None:
            return
        weights = engine.weights()
        with tempfile.TemporaryDirectory() as handed:
            checkpoint = None
            if weights is not None:
                exported, whole = merged_weights(model, weights), {"step": state.step, **line}
                target = Path(handed) / MODEL_IN_CHECKPOINT
                export_model(
                    target, model, exported, self.tokenizer, config, whole, self.source.total_steps, "to compare"
                )
                checkpoint = Checkpoint.from_directory(handed)
            validation = checkpoint is not None and ValidationTaskConfig(fn_kwargs={"step": state.step})
            ray.train.report({"step": state.step}, checkpoint=checkpoint, validation=validation)

    def signals(self) -> dict[str, float]:
        return {**self.saver.signals(), **self.alarm.signals(leads=self.leads)}

    def heard(self, signals: dict[str, float]) -> Wanted:
        self.saver.heard(signals)
        if not self.alarm.rings(signals, _seconds_left):
            return Wanted.NOTHING
        if self.alarm.stops:
            log("asked to stop: saving")
            return Wanted.LAST_CHECKPOINT
        if self.alarm.urgent:
            log("a machine of this run goes away: saving", logging.WARNING)
            return Wanted.CHECKPOINT_AT_ONCE
        return Wanted.CHECKPOINT


def _is_there(model: Path, why: str, step: int) -> bool:
    """Whether a model is kept for that reason that is of the step or of a later one."""
    kept = kept_model(model)
    return kept is not None and kept.why == why and kept.step >= step


def _seconds_left() -> float | None:
    """Until a node of the run is taken away, where the cluster has given notice. All ranks must ask together."""
    notice = ray.train.get_preemption_info()
    if notice is None:
        return None
    return notice.deadline_ms / 1000 - time.time() if notice.deadline_ms else _NOTICE_SECONDS
