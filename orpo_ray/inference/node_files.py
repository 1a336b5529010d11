"""A model's files on the node of an actor: another node than the driver's may have none, others, or the Hub's."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orpo_ray.errors import UserError
from orpo_ray.modeling.digests import files_digest
from orpo_ray.modeling.loading import model_folder

if TYPE_CHECKING:
    from orpo_ray.inference.models import EvaluatedModel


class FoundFile(NamedTuple):
    """What is seen of a file at a glance."""

    name: str
    size: int
    changed: int
    """In nanoseconds."""


def glance(files: Iterable[Path]) -> tuple[FoundFile, ...]:
    """At each, in this order."""
    return tuple(FoundFile(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def on_this_node(model: EvaluatedModel) -> EvaluatedModel:
    """`model`, which the driver has found, on the node of this process; one of the Hub is brought to the node's cache.

    Raises `UserError`, naming the host, where the node does not have it, or has another in its place.
    """
    files = [model.folder / file.name for file in model.files]
    lacks = [file for file in files if not file.is_file()]
    host = socket.gethostname()
    if lacks and model.hub:
        try:
            return replace(model, folder=model_folder(model.hub))
        except UserError as error:
            raise UserError(f"{model.key}: on {host}: {error}") from None
    where = "models have to be on storage that all nodes see, or on the Hub"
    if lacks:
        raise UserError(f"{model.key}: {host} has no {lacks[0]}, which the driver's host has; {where}")
    # A snapshot of the Hub is known by its commit. Of others the bytes are read where a glance does not tell.
    if not model.hub and glance(files) != model.files and files_digest(files) != model.content:
        raise UserError(f"{model.key}: {host} has another model in {model.folder} than the driver's host; {where}")
    return model
