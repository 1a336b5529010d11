"""Which files of a folder are the data of a split: all of it once, and refused where the folder leaves that open.

What says so, in this order: `state.json` and `dataset_dict.json`, which `save_to_disk` of `datasets` writes; `configs`
at the top of README.md, as data sets of the Hub have it; the names of files and folders.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from posixpath import dirname
from typing import Any

from orpo_ray.data.cards import Subset, subsets_of
from orpo_ray.data.names import EXTENSIONS, base_extension
from orpo_ray.data.streams import COMPRESSIONS
from orpo_ray.errors import UserError
from orpo_ray.parsing import member, object_from_json
from orpo_ray.visible import visible

NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
"""JSON files that lie beside data, written by `datasets` and others."""
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_WRITTEN_OUT = {"training": "train", "testing": "test", "evaluation": "eval"}
_CACHE = re.compile(r"cache-[0-9a-f]{16}(?:_\d+_of_\d+)?\.arrow")
"""What `map` and `filter` of `datasets` leave beside the data that they were made of."""
_BESIDE = re.compile(
    rf"{_CACHE.pattern}|{'|'.join(map(re.escape, sorted(NOT_DATA)))}|README.*|LICENSE.*|.*\.(?:md|lock|py)"
)
_SHARD = re.compile(r"(?P<stem>.*?)[-_.](?P<index>\d+)[-_]of[-_](?P<count>\d+)(?:[-_][0-9a-f]{16})?")
_NUMBERED = re.compile(r"(?:[-_.]\d+)+(?:[-_]of[-_]\d+(?:[-_][0-9a-f]{16})?)?$")
_FAMILIES = ((".csv", ".tsv"), (".parquet", ".arrow"))  # and JSON
_SET_SPLIT = "set data.train_split or data.eval_split (prompts.split of an evaluation), or name one file or folder"


@dataclass(frozen=True)
class Folder:
    """A folder of any file system."""

    label: str
    """What messages call it."""
    names: tuple[str, ...]
    """Of all files in it, relative to it, sorted."""
    read: Callable[[str], bytes]
    """Gives the content of a small file of it. Raises `UserError`."""


def not_read(folder: Folder, chosen: list[str]) -> list[str]:
    """The files that a person may take for data beside the `chosen`: all but those that lie beside data as a rule."""
    saved = {dirname(name) for name in folder.names if name.split("/")[-1] == "state.json"}
    return [
        name for name in folder.names
        if name not in chosen and dirname(name) not in saved and not _is_hidden(name)
        and not _BESIDE.fullmatch(name.split("/")[-1])
    ]  # fmt: skip


def files_of_split(folder: Folder, split: str, subset: str | None = None) -> list[str]:
    """The names of the files, in the order in which they are read.

    `subset`: one of those that README.md declares. Raises `UserError`, naming the candidates, where more than one
    reading is possible, and where there is none.
    """
    saved = _saved(folder, split)
    if saved is not None and subset is None:
        return saved
    subsets = subsets_of(folder.label, folder.names, folder.read)
    if subset is not None and subset not in subsets:
        known = f"it has {listed(subsets)}" if subsets else "README.md declares none"
        raise UserError(f"{folder.label}: has no subset {subset!r:.80}: {known}")
    names = _data(folder)
    if subsets:
        chosen = _of_subset(folder.label, subsets if subset is None else {subset: subsets[subset]}, names, split)
    else:
        chosen = _by_name(folder.label, names, split)
    _require_once(folder.label, chosen)
    return chosen


def _saved(folder: Folder, split: str) -> list[str] | None:
    """Of what `save_to_disk` wrote: the data set, or the split of several. None for any other folder."""
    inside = ""
    if "dataset_dict.json" in folder.names:
        splits = _member(folder, "dataset_dict.json", "splits", list)
        if split not in splits:
            raise UserError(f"{folder.label}: has the splits {listed(map(str, splits))} but no {split!r}; {_SET_SPLIT}")
        inside = f"{split}/"
    files = _saved_files(folder, f"{inside}state.json")
    if files is None and inside:
        raise UserError(
            f"{folder.label}: dataset_dict.json names the split {split!r}, but {inside}state.json is missing"
        )
    return files


def _saved_files(folder: Folder, state: str) -> list[str] | None:
    """Those that a `state.json` of `datasets` names; None where there is none."""
    if state not in folder.names:
        return None
    found = _object(folder, state)
    if "_data_files" not in found:
        return None
    if found.get("_indices_data_files"):
        hint = "load and save it again"
        raise UserError(f"{folder.label}/{state}: selects from the data files, which old versions did; {hint}")
    files = []
    for entry in _member(folder, state, "_data_files", list):
        name = entry.get("filename") if isinstance(entry, dict) else None
        files.append(f"{state.removesuffix('state.json')}{name}")
        if files[-1] not in folder.names:
            raise UserError(f"{folder.label}/{state}: names {name!r:.200}, which is not there")
    return files


def _object(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return object_from_json(folder.read(name))
    except ValueError as error:
        raise UserError(f"{folder.label}/{name}: {error}") from None


def _member(folder: Folder, name: str, key: str, kind: type) -> Any:
    try:
        return member(_object(folder, name), key, kind)
    except ValueError as error:
        raise UserError(f"{folder.label}/{name}: {error}") from None


def _data(folder: Folder) -> list[str]:
    """All data files; of saved data sets in the folder those that they name."""
    saved = {dirname(name): _saved_files(folder, name) for name in folder.names if name.split("/")[-1] == "state.json"}
    saved = {place: files for place, files in saved.items() if files is not None}
    others = [name for name in folder.names if dirname(name) not in saved and _is_data(name)]
    names = sorted([*others, *(name for files in saved.values() for name in files or ())])
    if not names:
        kinds = f"{', '.join(EXTENSIONS)}, plain or {' or '.join(COMPRESSIONS)}"
        raise UserError(f"{folder.label}: no data files in this folder ({kinds})")
    return names


def _is_data(name: str) -> bool:
    last = name.split("/")[-1]
    return base_extension(name) != "" and last not in NOT_DATA and not _CACHE.fullmatch(last) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _of_subset(label: str, subsets: dict[str, Subset], names: list[str], split: str) -> list[str]:
    """The files of the one subset, of the default one, or of the only one that has the split."""
    if len(subsets) > 1 and (default := [name for name, subset in subsets.items() if subset.is_default]):
        subsets = {name: subsets[name] for name in default}
    having = {name: subset for name, subset in subsets.items() if subset.has(split)}
    if not having:
        splits = sorted({each for subset in subsets.values() for each in subset.splits or ()})
        raise UserError(f"{label}: README.md has the splits {listed(splits)} but no {split!r}; {_SET_SPLIT}")
    if len(having) > 1:
        hint = f"name one, as in {label}:{listed([min(having)])}"
        raise UserError(f"{label}: README.md has split {split!r} in the subsets {listed(having)}; {hint}")
    [(name, subset)] = having.items()
    if subset.splits is not None:
        return subset.files(split, names)
    inside = [each for each in names if each.startswith(subset.folder)]
    if not inside:
        raise UserError(
            f"{label}: README.md has the subset {name!r:.80} in {subset.folder!r:.80}, where no data files are"
        )
    return _by_name(f"{label}/{subset.folder}".rstrip("/"), inside, split, subset.folder)


def _by_name(label: str, names: list[str], split: str, inside: str = "") -> list[str]:
    """The files whose path has `split` in it as a word; all of them where no path names any split, or each of them this
    one in another way (`Train`, `train1`).

    A path that *is* the split (`train.jsonl`, `train-00000-of-00002.parquet`, `train/a.jsonl`) goes before one that
    merely has it (`harmless-base-train.jsonl`), so `train` does not also read `train_sft`. Files may be parts of one
    split where the word ends their names (`helpful/train`, `helpful-train`). Where other words follow it
    (`train_prefs`, `train_sft`), or one place lies within another, they may as well hold the same records.
    """
    paths = {name: _path(name.removeprefix(inside)) for name in names}
    places = {name: tuple(path[: path.index(split)]) for name, path in paths.items() if split in path}
    if places:
        found = {place[:depth] for place in set(places.values()) for depth in range(len(place))}
        outer = next((name for name, place in places.items() if place in found), None)
        if outer is not None:
            inner = next(
                name for name, place in places.items() if place[: len(places[outer])] == places[outer] != place
            )
            _refuse_open(label, split, [outer, inner])
        return list(places)
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])")
    labels = {name: next(filter(word.search, _parts(name.removeprefix(inside))), "") for name in names}
    having = {name: label for name, label in labels.items() if label}
    if having:
        candidates = sorted(set(having.values()))
        if len(candidates) > 1 and not all(each.endswith(split) for each in candidates):
            _refuse_open(label, split, candidates)
        return list(having)
    words = [
        [part for part in re.split(r"[^A-Za-z0-9]+", name.removeprefix(inside)) if _split_meant(part)] for name in names
    ]
    if any(words) and any({*map(_split_meant, found)} != {split} for found in words):
        named = sorted({part for found in words for part in found})
        raise UserError(f"{label}: has files of {listed(named)} but none of split {split!r}; {_SET_SPLIT}")
    sharded = {"/".join(path) for path in paths.values()}
    if len(sharded) > 1 and all(_shard(name) for name in names):  # names of splits, as the Hub has them
        _refuse_open(label, split, sorted(sharded))
    return names


def _split_meant(word: str) -> str | None:
    """The split that a word of a name stands for, in any case, numbered or not: `train` of `Train` and `training2`."""
    plain = word.lower().rstrip("0123456789")
    plain = _WRITTEN_OUT.get(plain, plain)
    return plain if plain in SPLITS else None


def _refuse_open(label: str, split: str, candidates: list[str]) -> None:
    raise UserError(f"{label}: split {split!r} may be {listed(candidates, 'or')}; {_SET_SPLIT}")


def _path(name: str) -> list[str]:
    """Folders of a relative path, and the beginning of its last part, up to a dot or a shard's number."""
    *folders, last = name.split("/")
    return [*folders, _NUMBERED.sub("", last.split(".", 1)[0])]


def _parts(name: str) -> list[str]:
    """Folders of a relative path, and its stem without a shard's number."""
    return _NUMBERED.sub("", _stem(name)).split("/")


def _shard(name: str) -> re.Match[str] | None:
    return _SHARD.fullmatch(_stem(name))


def _stem(name: str) -> str:
    """`a/b` of `a/b.jsonl.gz`."""
    stem = name.lower()
    for ending in (*COMPRESSIONS, base_extension(name)):
        stem = stem.removesuffix(ending)
    return name[: len(stem)]


def _require_once(label: str, names: list[str]) -> None:
    """Refuses what would be read twice, or in part, to go by its names: one stem with two endings, tables beside JSON
    or CSV, shards of two countings, and shards of which some are missing."""
    stems: dict[str, str] = {}
    shards: dict[str, dict[int, tuple[int, str]]] = defaultdict(dict)
    for name in names:
        stem = _stem(name)
        if stem in stems:
            _refuse_twice(label, stems[stem], name)
        stems[stem] = name
        if shard := _SHARD.fullmatch(stem):
            index, count = int(shard["index"]), int(shard["count"])
            known = shards[shard["stem"]]
            other = known.get(index) or next(iter(known.values()), (count, name))
            if index in known or other[0] != count:
                _refuse_twice(label, other[1], name)
            known[index] = count, name
    for known in shards.values():
        count, name = next(iter(known.values()))
        if len(known) < count:
            hint = "name one file to read it alone"
            raise UserError(f"{label}: {len(known)} of the {count} parts are there that {name} is one of; {hint}")
    first, *others = {tuple(base_extension(name) in family for family in _FAMILIES): name for name in names}.values()
    if others:
        _refuse_twice(label, first, others[0])


def _refuse_twice(label: str, one: str, other: str) -> None:
    raise UserError(f"{label}: {one} and {other} may hold the same records, to go by their names; name one of them")


def listed(names: Iterable[str], last: str = "and") -> str:
    """`a, b and c`, shortened where there are very many."""
    *others, final = [f"{visible(name):.100}" for name in names] or ["none"]
    if len(others) > 11:
        others, final = others[:11], f"{len(others) - 10} more"
    return f"{', '.join(others)} {last} {final}" if others else final
