"""What a source of records may be called, and whether it can be there: known before anything large is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from orpo_ray.config.data import BUILT_IN
from orpo_ray.config.paths import expanded
from orpo_ray.data.streams import COMPRESSIONS
from orpo_ray.errors import UserError

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<subset>[\w./-]+))?")


def base_extension(path: str) -> str:
    """The extension of a path or URL beneath a compression's: `.jsonl` of `pairs.jsonl.gz`, or empty."""
    path = path.lower()
    if "://" in path:  # of several that are chained (zip://pairs.csv::https://…/pairs.zip) the first that has a path
        path = re.split(r"[?#]", next(url for url in path.split("::") if "://" in url), maxsplit=1)[0]
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    return next((extension for extension in EXTENSIONS if path.endswith(extension)), "")


def place_and_subset(source: str) -> tuple[str, str | None] | None:
    """A URL or a path that exists, and the subset that stands behind a folder's; None: it is neither.

    An existing path wins over a Hub id of the same name, without a subset and with one.
    """
    if "\0" in source:
        raise UserError(f"{source!r}: no file and no address has NUL in its name")
    if "://" in source or os.path.exists(expanded(source)):
        return source, None
    folder, colon, subset = source.rpartition(":")
    return (folder, subset) if colon and os.path.isdir(expanded(folder)) else None


def hub_name(source: str) -> tuple[str, str | None]:
    """Name and subset of a source that is no place here. Raises `UserError` where it cannot be a Hub id either."""
    looks_like_path = source.startswith(("/", ".", "~")) or base_extension(source) or source.endswith("/")
    hub_id = _HUB_ID.fullmatch(source)
    if looks_like_path or hub_id is None:
        hint = "" if looks_like_path else ", and not a Hub id (org/name or org/name:subset)"
        raise UserError(f"{source}: no such file or folder{hint}")
    return hub_id["name"], hub_id["subset"]


def hub_data_set(source: str) -> str | None:
    """The Hub id of what is read from the Hub, without a subset; None: it is read from elsewhere."""
    if source in BUILT_IN or place_and_subset(source) is not None:
        return None
    try:
        return hub_name(source)[0]
    except UserError:
        return None


def require_there(sources: Iterable[str]) -> None:
    """Raises `UserError`, naming it, where one is a file or folder that is not there. No network is asked."""
    for source in sources:
        if source not in BUILT_IN and place_and_subset(source) is None:
            hub_name(source)
