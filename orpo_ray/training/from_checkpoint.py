"""`orpo-ray export`: the model of a checkpoint, as a run would have kept it, on a CPU and without Ray.

Left out: adapters in peft's format, which a run keeps beside its own models.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.config import TrainConfig, load_config
from orpo_ray.config.objectives import RewardConfig
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.prepare import prepare
from orpo_ray.errors import UserError
from orpo_ray.modeling.digests import frozen_digest
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import PackedRewardModel, centre, ensure_pad_token
from orpo_ray.modeling.scorer import Scorer, load_scorer, packed_scores
from orpo_ray.objectives.registry import build_objective
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.metrics_file import read_metrics
from orpo_ray.storage.patience import STORAGE_ERRORS
from orpo_ray.storage.rounds import whole_steps
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.export import export_model
from orpo_ray.training.loop import Line
from orpo_ray.training.saving import BASE, load_weights, require_same_weights
from orpo_ray.training.starting import with_merged_adapters

_EXPORTED = "exported from its checkpoint"
_TOGETHER = 1024  # pairs that are scored at a time


def export_checkpoint(run: Path, step: int | None = None, out: Path | None = None) -> Path:
    """Write the model of a checkpoint of the run in the folder `run`, by default the newest, and return where.

    `out`: by default `model-step-N` in the run's folder. The model is what the run would keep at that step: adapters
    merged into their base, a reward model centred as its objective says. Raises `UserError` for what is not there, or
    not whole, or there already.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # `save_pretrained` imports DeepSpeed, which would look for one
    config, checkpoints = _config(run)
    try:
        manifest = _chosen(checkpoints, step)
        target = (out or run.resolve() / f"model-step-{manifest.step}").absolute()
        if target.exists():
            raise UserError(f"{target}: is there already; remove it, or choose another by --out")
        _export(config, checkpoints, manifest, _metrics(run), target)
    except STORAGE_ERRORS as error:
        raise UserError(f"{checkpoints.location}: cannot be exported: {' '.join(str(error).split())}") from None
    return target


def _config(run: Path) -> tuple[TrainConfig, Checkpoints]:
    """Of a run's folder, wherever it lies by now."""
    file = RunFolder(run).config
    if not file.is_file():
        raise UserError(f"{run}: not the folder of a training run (no {file.name})")
    config = load_config(file)
    storage = config.storage.model_copy(update={"path": str(run.resolve().parent)})
    return config, Checkpoints(storage.checkpoints_of(run.resolve().name))


def _chosen(checkpoints: Checkpoints, step: int | None) -> Manifest:
    """Raises `UserError` where it is not there or not whole."""
    finished = {manifest.step: manifest for manifest in checkpoints.finished()}  # newest first
    if not finished:
        raise UserError(f"{checkpoints.location}: holds no finished checkpoint")
    there = ", ".join(map(str, sorted(finished)))
    manifest = finished.get(next(iter(finished)) if step is None else step)
    if manifest is None:
        raise UserError(f"{checkpoints.location}: holds no finished checkpoint of step {step}; --step may be {there}")
    damage = checkpoints.damage(manifest, sorted(manifest.files))
    if damage is not None:
        folder = checkpoints.folder(manifest.step)
        raise UserError(f"{folder}: {damage}, so it cannot be exported; there are those of step {there}")
    return manifest


def _export(
    config: TrainConfig, checkpoints: Checkpoints, manifest: Manifest, metrics: list[Line], target: Path
) -> None:
    starting = with_merged_adapters(config)
    tokenizer = load_tokenizer(starting.model)
    objective = build_objective(config.objective)
    if objective.model == "reward":
        ensure_pad_token(tokenizer)
    policy = load_scorer(objective.model, starting.model, seed=config.seed)
    frozen = frozen_digest(policy.model)
    require_same_weights(manifest, {} if frozen is None else {BASE: frozen}, config.resume.allow_changes)
    load_weights(policy, checkpoints, manifest)
    exported = merged_weights(policy.model, dict(policy.model.state_dict()))
    if isinstance(policy, PackedRewardModel) and isinstance(config.objective, RewardConfig) and config.objective.centre:
        centre(policy, _mean_reward(policy, _pairs(config, tokenizer, manifest), config), exported)
    target.parent.mkdir(parents=True, exist_ok=True)
    evaluation = _evaluation(metrics, manifest.step)
    export_model(
        target, policy.model, exported, tokenizer, config, evaluation, _total_steps(config, metrics), _EXPORTED
    )


def _pairs(config: TrainConfig, tokenizer: Tokenizer, manifest: Manifest) -> Pairs:
    """Those that the run is trained on. Raises `UserError` where they have changed."""
    data = prepare(config, tokenizer)
    if data.digest != manifest.data:
        raise UserError("data.train or data.eval: other pairs than those that the run began with, which centre it")
    return data.train


def _mean_reward(policy: Scorer, pairs: Pairs, config: TrainConfig) -> float:
    """Over all responses of every record."""
    policy.eval()
    total = 0.0
    for start in range(0, len(pairs), _TOGETHER):
        rows = [pairs.pair(i) for i in range(start, min(start + _TOGETHER, len(pairs)))]
        total += sum(map(sum, packed_scores(policy, rows, config.train.tokens_per_microbatch)))
    return total / int(pairs.counts().sum())


def _metrics(run: Path) -> list[Line]:
    """They are for the card alone. Raises `UserError` where a line is damaged."""
    file = RunFolder(run).metrics
    return list(read_metrics(file).values()) if file.is_file() else []


def _evaluation(metrics: list[Line], step: int) -> Line:
    """The evaluation line of a step; where there is none, the step alone."""
    evaluated = [line for line in metrics if line["step"] == step and "loss" not in line]
    numbers = evaluated[-1] if evaluated else {}
    return {"step": step, **{name: value for name, value in numbers.items() if isinstance(value, float)}}


def _total_steps(config: TrainConfig, metrics: list[Line]) -> int | None:
    """None: no line says how many steps an epoch has."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    for line in metrics:
        epoch = line.get("epoch")
        if isinstance(epoch, float) and epoch > 0 and math.isfinite(steps := float(line["step"]) / epoch):
            return whole_steps(config.for_a_file(), config.train.epochs, steps)
    return None
