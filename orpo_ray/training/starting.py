"""What a run starts from where it names adapters: the whole models that they make of their bases."""

from __future__ import annotations

import os
from typing import Literal

from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import OnlineConfig
from orpo_ray.errors import UserError
from orpo_ray.modeling.adapters import adapter_folder, merged_adapter
from orpo_ray.modeling.loading import Warn, log_warning
from orpo_ray.objectives.registry import build_objective
from orpo_ray.training.saving import BASE, REFERENCE


def with_merged_adapters(config: TrainConfig, warn: Warn = log_warning) -> TrainConfig:
    """The same run with the folder of a whole model wherever `config` names an adapter, which is merged where the cache
    does not hold it; `config` itself where it names none.

    To be called before there are workers; `warn` is told what a person should know of. Raises `UserError`, naming the
    key, where an adapter cannot be merged.
    """
    model, objective = config.model, config.objective
    pairs = objective.pairs if isinstance(objective, OnlineConfig) else None
    reference = getattr(objective.compares, "reference", None)
    changed: dict[str, object] = {}
    kind = build_objective(config.objective).model
    if (folder := _merged(BASE, model.name_or_path, model.revision, kind, config, warn)) is not None:
        changed["model"] = model.model_copy(update={"name_or_path": folder, "revision": None})
    if reference is not None and (folder := _merged(REFERENCE, reference, None, "policy", config, warn)) is not None:
        inner = {"reference": folder}
        update = inner if pairs is None else {"pairs": pairs.model_copy(update=inner)}
        changed["objective"] = objective.model_copy(update=update)
    return config.model_copy(update=changed) if changed else config


def _merged(
    key: str, name: str, revision: str | None, kind: Literal["policy", "reward"], config: TrainConfig, warn: Warn
) -> str | None:
    """None: `name` is no adapter."""
    if name == "toy" or (revision is not None and os.path.isdir(name)):  # a folder has no revisions, as will be told
        return None
    try:
        adapter = adapter_folder(name, revision)
        if adapter is None:
            return None
        trust = config.model.trust_remote_code
        return str(merged_adapter(adapter, config.cache_dir, kind=kind, trust_remote_code=trust, warn=warn).resolve())
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
