"""Where an evaluation stands."""

from __future__ import annotations

import glob
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.evaluation.store import PROMPTS_IN_BLOCK
from orpo_ray.status.status import Status, again, age_of, state_of


def evaluation_status(folder: Path, config: dict[str, Any], text: str) -> Status:
    """The pieces that are there are counted; of a label asked with other settings before, the newest."""
    prompts = _rows(folder / "prompts.parquet")
    sampling, models, judges = (config.get(key) for key in ("sampling", "models", "reward_models"))
    rounds = sampling.get("rounds") if isinstance(sampling, dict) else None
    rounds = rounds if isinstance(rounds, int) else 3
    labels = list(models) if isinstance(models, dict) else []
    judge_labels = list(judges) if isinstance(judges, dict) else []
    pieces = {label: pieces_of(folder / "responses", label) for label in labels}
    judged = [len(pieces_of(folder / "rewards", f"{judge}-{label}")) for judge in judge_labels for label in labels]
    responses = sum(_rows(file) or 0 for files in pieces.values() for file in files)
    asked = None if prompts is None else prompts * len(labels) * rounds
    blocks = None if prompts is None else math.ceil(prompts / PROMPTS_IN_BLOCK)
    judged_blocks = min(judged, default=0)
    # Pieces that were removed to save room do not unfinish it.
    begun = any(pieces.values())
    finished = (folder / "winrates.json").is_file() and (not begun or (responses == asked and judged_blocks == blocks))
    age = age_of([folder / "config.yaml", *folder.glob("responses/*/*.parquet"), *folder.glob("rewards/*/*.parquet")])
    state = state_of(finished, age)
    facts = {
        "prompts": prompts, "models": labels, "rounds": rounds, "responses": responses, "responses_of_all": asked,
        "judged_blocks": judged_blocks, "blocks": blocks,
    }  # fmt: skip
    rows = [
        ("asked", f"{_or(prompts)} prompts, {len(labels)} models x {rounds} rounds"),
        ("responses", f"{responses} of {_or(asked)}"),
        ("judged", f"{judged_blocks} of {_or(blocks)} blocks of {PROMPTS_IN_BLOCK} prompts"),
    ]
    if finished:
        following = f"open {folder / 'report.html'}"
    else:
        following = f"orpo-ray status {folder}" if state == "running" else again("evaluate", folder, config, text)
    return Status("evaluation", str(config.get("name", folder.name)), str(folder), state, age, facts, rows, following)


def pieces_of(folder: Path, label: object) -> list[Path]:
    """Those of the newest settings."""
    folders = [Path(found) for found in glob.glob(f"{glob.escape(str(folder / str(label)))}-{'[0-9a-f]' * 12}")]
    newest = max(folders, key=lambda found: found.stat().st_mtime, default=None)
    return sorted(newest.glob("*.parquet")) if newest is not None else []


def _rows(file: Path) -> int | None:
    """None: not there, or not readable."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _or(count: int | None) -> str:
    return "an unknown number" if count is None else str(count)
