"""What an evaluation, or scores, leave behind, and find again: `runs/<name>/` and its pieces.

Responses and rewards lie in pieces, a file for a block of prompts, in folders named by a hash of all that decides
their content. So an interrupted evaluation goes on where it stopped, and another setting is another folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.data.records import one_line
from orpo_ray.errors import UserError
from orpo_ray.storage.run_folder import write_table

PROMPTS_IN_BLOCK = 32
"""A piece of work, and what is lost at most with an interruption."""

VERSION = 1
"""Raised by one whenever the same inputs would give other responses or rewards: older pieces are then not found."""

RESPONSES = pa.schema(
    [("prompt", pa.int64()), ("round", pa.int64()), ("text", pa.string()), ("tokens", pa.int64()),
     ("ended", pa.string())]
)  # fmt: skip
REWARDS = pa.schema(
    [("prompt", pa.int64()), ("model", pa.string()), ("round", pa.int64()), ("reward", pa.float64())]
)  # fmt: skip
LOG_PROBS = pa.schema(
    [("prompt", pa.int64()), ("chosen", pa.float64()), ("rejected", pa.float64()), ("chosen_tokens", pa.int64()),
     ("rejected_tokens", pa.int64())]
)  # fmt: skip


class EvaluationFolder:
    """Paths of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.prompts = path / "prompts.parquet"
        self.responses = path / "responses"
        self.rewards = path / "rewards"
        self.log_probs = path / "log_probs"
        self.verdicts = path / "verdicts"
        self.judgements = path / "verdicts.parquet"
        self.leaderboards = path / "leaderboards"
        self.results = path / "results.parquet"
        self.winrates = path / "winrates.json"
        self.report = path / "report.html"

    def of_turn(self, turn: int) -> EvaluationFolder:
        """Where the pieces of one turn lie, counted from 1."""
        return self if turn == 1 else EvaluationFolder(self.path / f"turn_{turn}")


class ScoreFolder:
    """Paths of scores."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.account = path / "account.json"
        self.rewards = path / "rewards"
        self.scores = path / "scores.parquet"
        self.summary = path / "scores.json"


class Pieces:
    """The files of one kind of work for one model: `folder/<block>.parquet`."""

    def __init__(self, folder: Path, label: str, key: str, schema: pa.Schema) -> None:
        self.folder = folder / f"{label}-{key[:12]}"
        self._schema = schema

    def path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.parquet"

    def has(self, block: int) -> bool:
        return self.path(block).is_file()

    def read(self, block: int) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path(block), schema=self._schema).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            hint = "remove it, and it is made again"
            raise UserError(f"{self.path(block)}: cannot be read: {one_line(error)}; {hint}") from None
        return rows

    def write(self, block: int, rows: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(self.path(block), pa.Table.from_pylist(rows, self._schema))


class Parts:
    """Pieces of one kind of work in several parts: the rewards of each model's responses by one reward model."""

    def __init__(self, parts: dict[str, Pieces]) -> None:
        self.parts = parts

    @property
    def names(self) -> list[str]:
        """Of their folders."""
        return [pieces.folder.name for pieces in self.parts.values()]

    def has(self, block: int) -> bool:
        return all(pieces.has(block) for pieces in self.parts.values())

    def read(self, block: int) -> list[dict[str, Any]]:
        """The rows of all parts, one after the other."""
        return [row for pieces in self.parts.values() for row in pieces.read(block)]


def content_key(**parts: Any) -> str:
    """A hash of JSON values."""
    content = json.dumps({"version": VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
