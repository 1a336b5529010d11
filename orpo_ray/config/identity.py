"""Which settings make a run the run it is: two configurations that differ in these may not continue each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from orpo_ray.config.paths import known_by

# What may differ when the same run is continued: where and on how much it runs, and how much it keeps.
_FREE_SECTIONS = ("eval", "scaling", "storage", "resume", "trackers")
_FREE_KEYS = {
    "data": ("max_record_characters", "date"),  # where they change the pairs, their digest tells
    "rollouts": ("engine", "engines", "gpus", "gpu_memory", "sleep", "eval_prompts"),
    "train": (
        "tokens_per_microbatch", "memory", "deterministic", "zero_stage", "deepspeed", "offload_optimizer", "keep",
        "keep_checkpoints", "keep_best_checkpoints", "checkpoint_every_steps", "checkpoint_every_minutes",
        "max_skipped_steps",
    )
}  # fmt: skip
_LATER_KEYS = {
    "model.revision": None, "data.temperature": None, "data.columns": None, "data.roles": None, "data.system": None,
    "data.prefer": None, "data.unread": None, "data.comparisons": "every_pair", "objective.loss": "bradley_terry",
    "data.unseen_fraction": None, "train.keep_by": "eval_loss", "train.keep_mode": "auto", "rollouts": None,
    "model.float32_logits": False,
}  # fmt: skip
"""That came after there were runs: at their default they do not count, so that those runs are continued."""


def identity(mapping: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training configuration, as it is dumped, that decide its trajectory, by dotted key."""
    free = {f"{section}.{key}" for section, keys in _FREE_KEYS.items() for key in keys}
    if mapping.get("rollouts") is not None:
        free.add("data.max_prompt_length")  # whose prompts are never cut
    settings = _dotted({section: value for section, value in mapping.items() if section not in _FREE_SECTIONS})
    return {
        key: value for key, value in settings.items()
        if key not in free and (key not in _LATER_KEYS or value != _LATER_KEYS[key])
    }  # fmt: skip


def same(held: Any, wanted: Any) -> bool:
    """Whether two settings are the same, however the places in them are spelled."""
    return bool(held == wanted or known_by(held) == known_by(wanted))


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Dotted keys in which two dumped configurations describe different runs."""
    before, after = identity(held), identity(wanted)
    return [key for key in sorted({*before, *after}) if not same(before.get(key), after.get(key))]


def differing(mappings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """By dotted key in which any two of these dumped configurations describe different runs, the value of each; the
    names of the runs aside. None where one has no such key."""
    held = [identity(mapping) for mapping in mappings]
    keys = sorted({key for each in held for key in each} - {"name"})
    values = {key: [each.get(key, _LATER_KEYS.get(key)) for each in held] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def other_settings(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Dotted keys in which two dumped configurations differ, but for places and for what is allowed to change."""
    before, after = _dotted(held), _dotted(wanted)
    differing = sorted(key for key in {*before, *after} if not same(before.get(key), after.get(key)))
    return [key for key in differing if not key.startswith(("storage.", "resume."))]


def _dotted(mapping: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, value in mapping.items():
        if isinstance(value, dict):
            found |= {f"{section}.{key}": inner for key, inner in value.items()}
        else:
            found[section] = value
    return found


def digest(mapping: dict[str, Any]) -> str:
    """Of `identity`; behind it, where that is another one, with places by what they lead to (see `known_by`)."""
    settings = identity(mapping)
    texts = [json.dumps(each, sort_keys=True) for each in (settings, known_by(settings))]
    return " ".join(hashlib.sha256(text.encode()).hexdigest() for text in dict.fromkeys(texts))


def of_one_run(held: str, wanted: str) -> bool:
    """Whether two digests are of the same settings: a folder that was moved keeps the text of a relative path, and one
    that is spelled otherwise what it leads to."""
    return not set(held.split()).isdisjoint(wanted.split())
