"""Whether what a path leads to on one host is what it leads to on another: a file, or a model's folder.

Other folders are not compared, for more may lie there than is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

Stats = dict[str, tuple[int, int, int]]
"""Of each file its inode, size and modification time in ns: the same where it is one file in a shared folder."""


def _files(path: Path) -> dict[str, Path]:
    """By name; hidden ones, where a download notes what it was, are no part of a model."""
    if path.is_file():
        return {"": path}
    if not (path / "config.json").is_file():
        return {}
    found = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {name: found[name] for name in sorted(found) if not any(part[0] == "." for part in Path(name).parts)}


def stats_of(path: str) -> Stats:
    found = {name: file.stat() for name, file in _files(Path(path)).items()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def digest_of(path: str) -> str:
    digest = hashlib.sha256()
    for name, file in _files(Path(path)).items():
        with file.open("rb") as opened:
            digest.update(f"{name}\n".encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def digests_of_others(held: Mapping[str, tuple[str, Stats]]) -> dict[str, str]:
    """Of those paths that lead to other files here. `held`: by key, a path and its files elsewhere."""
    return {key: digest_of(path) for key, (path, stats) in held.items() if stats_of(path) != stats}
