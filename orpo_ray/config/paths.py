"""Where a training run's configuration may name a file or a folder to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def named_paths(mapping: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Of a dumped `TrainConfig` the dotted key of each name that may be a path, and the section and key that hold it.

    A source of several is named by its own name.
    """
    data, win_rate = mapping["data"], mapping["eval"]["win_rate"] or {}
    rewards = (mapping["rollouts"] or {}).get("rewards", {})
    listed = [(f"data.{key}", one) for key in ("train", "eval") if isinstance(data[key], list) for one in data[key]]
    places: list[tuple[str, dict[str, Any], str]] = [
        *(("model", mapping["model"], key) for key in ("name_or_path", "tokenizer")),
        *(("data", data, key) for key in ("train", "eval") if isinstance(data[key], str)),
        *((name, one, "source") for name, one in listed),
        *(("objective", mapping["objective"], key) for key in ("reference", "critic")),
        ("objective.pairs", mapping["objective"].get("pairs") or {}, "reference"),
        *(("eval.win_rate", win_rate, key) for key in ("against", "reward_model")),
    ]
    for label, reward in rewards.items():
        # Where only its path is given, the text stands for it.
        at = (rewards, label) if isinstance(reward, str) else (reward, "path")
        places.append((f"rollouts.rewards.{label}", *at))
    for name, section, key in places:
        if section.get(key) is not None:
            named = f"{name}.{section['name']}" if key == "source" else f"{name}.{key}"
            yield name if name.startswith("rollouts.") else named, section, key
