"""The win-rate of a checkpoint while training goes on: a small evaluation on what the workers leave free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_ray.config import TrainConfig
from orpo_ray.config.evaluation import on_held_out
from orpo_ray.errors import UserError
from orpo_ray.masking import masked
from orpo_ray.storage.run_folder import MODEL_IN_CHECKPOINT, RunFolder
from orpo_ray.telemetry.metrics import training_line

if TYPE_CHECKING:
    from ray.train import Checkpoint


def validate_checkpoint(checkpoint: Checkpoint, *, config: dict[str, Any], step: int) -> dict[str, Any]:
    """The win-rate of a checkpoint's model against `eval.win_rate.against`, also written to `metrics.jsonl`.

    `config`: the dumped `TrainConfig`. What the other model answered is kept and asked for once. An evaluation that
    fails leaves a line with `eval_win_rate` null and the reason, and training goes on.
    """
    run = TrainConfig.model_validate(config)
    folder = RunFolder(run.run_dir)
    try:
        with checkpoint.as_directory() as files:
            metrics = _win_rate(run, folder, Path(files) / MODEL_IN_CHECKPOINT)
    except Exception as error:
        folder.append_metrics({"step": step, "eval_win_rate": None, "eval_win_rate_failure": masked(str(error)[:2000])})
        raise
    folder.append_metrics({"step": step, **metrics})
    training_line(folder.path, metrics)
    return metrics


def _win_rate(run: TrainConfig, folder: RunFolder, model: Path) -> dict[str, Any]:
    import ray

    from orpo_ray.evaluation.cluster import beside  # here: every `orpo-ray train` imports this file, few compare
    from orpo_ray.evaluation.evaluate import evaluate, read_winrates

    asked = run.eval.win_rate
    assert asked is not None
    evaluation = on_held_out(run, asked, {"policy": str(model)}, folder.win_rate.name, folder.path, run.seed)
    resources = beside(run.scaling, int(ray.cluster_resources().get("GPU", 0)))
    found = read_winrates(evaluate(evaluation, resources=resources, wait=True))  # for a lost task that this one repeats
    return _metrics(found)


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    """Of `winrates.json`. Raises `UserError` where no prompt has a reward of both models."""
    pair = next((pair for pair in found["pairs"] if pair["model"] == "policy"), None)
    if pair is None:
        raise UserError(f"eval.win_rate: no prompt has a reward of both models: {' '.join(found['notes'])}")
    low, high = pair["ci95"]
    return {"eval_win_rate": pair["win_rate"], "eval_win_rate_low": low, "eval_win_rate_high": high}
