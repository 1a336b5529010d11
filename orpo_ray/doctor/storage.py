"""Whether every node can write to the run's storage, and reads there what the others wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import pyarrow as pa
import pyarrow.fs as pafs

from orpo_ray.doctor.finding import Finding, grouped
from orpo_ray.errors import UserError
from orpo_ray.storage.checkpoints import open_filesystem

_PREFIX = ".orpo-ray-doctor"
_FAILURES = (OSError, pa.ArrowException, UserError)


def write(location: str, node: str, token: str) -> tuple[list[str], str]:
    """Write a small file of this node; returns the folders that were made for it, outermost first, and what failed."""
    made: list[str] = []
    try:
        filesystem, path = open_filesystem(location)
        if isinstance(filesystem, pafs.LocalFileSystem):
            made = _missing(filesystem, path)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(_file(path, node, token)) as file:
            file.write(token.encode())
    except _FAILURES as error:
        return made, " ".join(str(error).split())
    return made, ""


def unseen(location: str, nodes: Iterable[str], token: str) -> dict[str, str]:
    """Those nodes whose file is not read here, and why."""
    found = {}
    for node in nodes:
        try:
            filesystem, path = open_filesystem(location)
            with filesystem.open_input_stream(_file(path, node, token)) as file:
                if file.read().decode(errors="replace") != token:
                    found[node] = "its file has other content"
        except _FAILURES as error:
            found[node] = " ".join(str(error).split())
    return found


def remove_file(location: str, node: str, token: str) -> None:
    """This node's own."""
    with suppress(*_FAILURES):
        filesystem, path = open_filesystem(location)
        filesystem.delete_file(_file(path, node, token))


def remove_folders(made: list[str]) -> None:
    """Those that were made for the check, if they are empty: training may have begun in them meanwhile."""
    local = pafs.LocalFileSystem()
    for folder in reversed(made):
        with suppress(*_FAILURES):
            if not local.get_file_info(pafs.FileSelector(folder)):
                local.delete_dir(folder)


def judge(location: str, errors: Mapping[str, str], unseen: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """`errors`: what failed in writing, by node; `unseen`: by node, the nodes whose files it does not read."""
    fix = "mend its permissions or its mount, or choose another place (storage.path, storage.cache, …)"
    failed = {
        node: Finding("FAIL", "storage", f"{location} cannot be written: {error}", fix)
        for node, error in errors.items() if error
    }  # fmt: skip
    if failed:
        return grouped(failed) if len(errors) == len(failed) else [
            finding._replace(found=f"{node}: {finding.found}") for node, finding in failed.items()
        ]  # fmt: skip
    blind = {node: [other for other in others if not errors[other]] for node, others in unseen.items()}
    if any(blind.values()):
        told = "; ".join(
            f"{node} does not see what {', '.join(others)} wrote" for node, others in blind.items() if others
        )
        fix = "let storage.path be a folder that all nodes share (NFS, a volume of ReadWriteMany), at the same place"
        return [Finding("FAIL", "storage", f"{location} is not shared: {told}", fix)]
    seen = "" if len(errors) < 2 else f" from {len(errors)} nodes, and seen by all"
    return [Finding("OK", "storage", f"{location} can be written{seen}")]


def _file(path: str, node: str, token: str) -> str:
    return f"{path.rstrip('/')}/{_PREFIX}-{token}-{node}"


def _missing(filesystem: pafs.LocalFileSystem, path: str) -> list[str]:
    """The folders of a path that are not there, outermost first."""
    missing: list[str] = []
    while path.strip("/") and filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        missing.insert(0, path)
        path = path.rpartition("/")[0]
    return missing
