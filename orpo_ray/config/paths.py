"""Texts that may be paths: how they are checked and expanded, and where a training run's configuration has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

STAGES = "stages"
"""In the folder of a paper: the folders of its stages."""
_STAGE = re.compile(rf"^.*/{STAGES}/(?=[^/]*-[0-9a-f]{{8}}(/|$))")
"""What stands before the name of a paper's stage, where that ends in the digest of what decides it."""


def require_place(text: str) -> str:
    """`text` itself. Raises `ValueError` where it can be no path, and so nothing that stands in a path's place."""
    if "\0" in text:
        raise ValueError(f"no path and no address has NUL in it ({text!r:.80})")
    if os.path.expanduser(text).startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"there is no home folder {user:.80} here; for a folder that is called so write ./{user:.80}")
    return text


Place = Annotated[str, AfterValidator(require_place)]
"""A text that is, or may be, the path of a file or folder: beside them it may take Hub ids, addresses or names."""


def expanded(place: str) -> Path:
    """The path with `~` replaced; of whatever is no path as it is."""
    return Path(os.path.expanduser(place))


def known_by(value: Any) -> Any:
    """`value`, each text in it by what it leads to: a stage of a paper by its name, whose digest tells it wherever the
    paper lies; a file or folder that is here by its real path; all else as it stands."""
    if isinstance(value, dict):
        return {key: known_by(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [known_by(inner) for inner in value]
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)
    return _STAGE.sub("", os.path.realpath(path) if os.path.exists(path) else value)


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
