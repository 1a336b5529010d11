"""The `configs` at the top of a data set's README.md: which subsets it has, and which files are their splits.

As the Hugging Face Hub has it: https://huggingface.co/docs/hub/datasets-manual-configuration. Other keys than
`config_name`, `data_files`, `data_dir` and `default` say how `datasets` would read the files; they are not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from orpo_ray.config.reading import MAX_CHARACTERS, parse_yaml
from orpo_ray.errors import UserError

README = "README.md"
_FRONT_MATTER = re.compile(r"\ufeff?(---[ \t]*\r?\n.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Subset:
    """One of the `configs`."""

    where: str
    """What messages call the file that says so."""
    splits: dict[str, list[str]] | None
    """Patterns of files by split; None where the names of the files tell."""
    folder: str
    """Where the names begin, with the slash, or empty."""
    is_default: bool

    def has(self, split: str) -> bool:
        """Whether it has the split, or may have it."""
        return self.splits is None or split in self.splits

    def files(self, split: str, names: list[str]) -> list[str]:
        """Those of the data files `names` that the patterns of `split` match. Raises `UserError` where one has none."""
        assert self.splits is not None
        chosen: dict[str, None] = {}
        for pattern in self.splits[split]:
            found = [name for name in names if _matches(self.folder + pattern.removeprefix("./"), name)]
            if not found:
                raise UserError(f"{self.where}: split {split!r:.80}: no data file matches {pattern!r:.80}")
            chosen.update(dict.fromkeys(found))
        return list(chosen)


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for any characters of one part of the path, `**` for any number of parts."""
    parts = path.split("/")
    reached = {0}  # numbers of parts that what was looked at of the pattern may stand for
    for wanted in pattern.split("/"):
        if wanted == "**":
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
        else:  # `fnmatch` takes linear time, where a regular expression of many stars takes exponential
            reached = {n + 1 for n in reached if n < len(parts) and fnmatchcase(parts[n], wanted)}
    return len(parts) in reached


def subsets_of(label: str, names: Collection[str], read: Callable[[str], bytes]) -> dict[str, Subset]:
    """By name; empty where README.md declares none. Raises `UserError`, naming it, where they cannot be understood."""
    if README not in names:
        return {}
    front = _FRONT_MATTER.match(read(README)[:MAX_CHARACTERS].decode("utf-8", "replace"))
    if front is None or re.search(r"^configs[ \t]*:", front[1], re.MULTILINE) is None:
        return {}
    where = f"{label}/{README}"
    card = parse_yaml(front[1], where)
    entries = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: configs should be a list of subsets")
    subsets: dict[str, Subset] = {}
    for entry in entries:
        name = entry.get("config_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in subsets:
            raise UserError(f"{where}: configs: each should have a config_name of its own")
        try:
            subsets[name] = _subset(where, name, entry, len(entries) == 1)
        except ValueError as error:
            raise UserError(f"{where}: configs: {name!r:.80}: {error}") from None
    if sum(subset.is_default for subset in subsets.values()) > 1:
        raise UserError(f"{where}: configs: more than one is the default")
    return subsets


def _subset(where: str, name: str, entry: dict[str, Any], is_only: bool) -> Subset:
    folder = entry.get("data_dir") or ""
    if not isinstance(folder, str):
        raise ValueError("data_dir should be text")
    folder = folder.removeprefix("./").strip("/")
    files = entry.get("data_files")
    splits = None if files is None else _splits(files)
    return Subset(
        where, splits, f"{folder}/" if folder else "", is_only or name == "default" or bool(entry.get("default"))
    )


def _splits(files: Any) -> dict[str, list[str]]:
    """By split: `data_files` is a pattern or several of the split train, or says the split of each."""
    if isinstance(files, dict):
        return {str(split): _patterns(path) for split, path in files.items()}
    if isinstance(files, list) and any(isinstance(entry, dict) for entry in files):
        if not all(isinstance(entry, dict) and {"split", "path"} <= entry.keys() for entry in files):
            raise ValueError("each of data_files should have a split and a path")
        splits = {str(entry["split"]): _patterns(entry["path"]) for entry in files}
        if len(splits) < len(files):
            raise ValueError("data_files has a split twice")
        return splits
    return {"train": _patterns(files)}


def _patterns(path: Any) -> list[str]:
    found = path if isinstance(path, list) else [path]
    if not found or not all(isinstance(pattern, str) for pattern in found):
        raise ValueError("data_files should be a path, or a list of paths")
    if odd := next((each for each in found if any("**" in part != "**" for part in each.split("/"))), None):
        raise ValueError(f"in {odd!r:.80} ** is beside other characters")
    return found
