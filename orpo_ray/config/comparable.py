"""Which settings a sweep may vary: trials are compared by the same held-out pairs, and stopped at the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_ray.config.schema import TrainConfig
from orpo_ray.config.section import Section

_TRAINED_ON = ("train", "train_split", "limit")
"""Keys of `data` that, where `data.eval` is set, no held-out pair depends on."""
_LEARNED_FROM = ("prompts", "samples", "epochs", "importance_cap", "clip_scores", "cut_penalty", "rewards")
"""Keys of `rollouts` that no held-out reward depends on but by what was learned; of `rewards` each reward by itself."""


def varied(key: str, runs: Sequence[TrainConfig]) -> list[str]:
    """The settings, by dotted key, in which trials differ whose space has `key`: that one, and those in which `runs`
    do, one for each of its values. So a mapping, or a text that stands for one, is told by what it sets, and an
    objective by the `rollouts.epochs` that follow from it."""
    held = [dict(settings_of(run)) | {"rollouts.epochs": run.epochs_of_rollouts} for run in runs]
    names = dict.fromkeys([key, *(name for each in held for name in each)])
    absent = object()
    return [
        name
        for name in names
        if name == key or any(each.get(name, absent) != held[0].get(name, absent) for each in held)
    ]


def settings_of(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a configuration with its dotted key."""
    if isinstance(value, Section):
        fields = type(value).model_fields.items()
        value = {field.alias or name: getattr(value, name) for name, field in fields}
    elif isinstance(value, list):
        value = {str(place): each for place, each in enumerate(value)}
    if not isinstance(value, dict):
        yield key, value
        return
    for name, each in value.items():
        yield from settings_of(each, f"{key}.{name}" if key else name)


def unlike_data(key: str, base: TrainConfig) -> str:
    """Why trials of `base` that differ in `key` could not be compared; empty where they can."""
    section, _, inner = key.partition(".")
    held_out_apart = base.data.eval is not None
    if section == "rollouts" and inner.split(".")[0] not in _LEARNED_FROM:
        return "decides how held-out prompts are answered, so trials could not be compared"
    if (section == "data" and not (_weighs(inner) or (held_out_apart and _trained_on(inner)))) or (
        key == "seed" and not held_out_apart
    ):
        hint = "; set data.eval" if not held_out_apart and (key == "seed" or _trained_on(inner)) else ""
        return f"decides the held-out pairs, so trials could not be compared{hint}"
    return ""


def unlike_length(key: str, base: TrainConfig) -> str:
    """Why trials of `base` that differ in `key` cannot be stopped by comparing them; empty where they can.

    What is compared is the same share of each run. A batch size alone does not change how many pairs that is.
    """
    section, _, inner = key.partition(".")
    hint, seen = "", "pairs" if base.rollouts is None else "prompts"
    if key in ("train.global_batch_size", "rollouts.epochs") and base.train.max_steps is not None:
        hint = "leave out train.max_steps, or "
        if base.rollouts is not None and base.rollouts.epochs is None and key == "rollouts.epochs":
            hint = "set rollouts.epochs, which follow from the objective, " + hint
    elif section == "data" and _trained_on(inner) and not _weighs(inner) and base.train.max_steps is None:
        hint = "set train.max_steps, or "
    elif key not in ("train.epochs", "train.max_steps"):
        return ""
    return (
        f"trials would differ in how many {seen} they see, and none can be stopped for what a longer or a shorter one "
        f"has at that length; {hint}set scheduler: none"
    )


def _weighs(inner: str) -> bool:
    """Whether a key of `data` says no more than how often training sources are read."""
    return inner == "temperature" or (inner.startswith("train.") and inner.endswith(".weight"))


def _trained_on(inner: str) -> bool:
    return inner.split(".")[0] in _TRAINED_ON
