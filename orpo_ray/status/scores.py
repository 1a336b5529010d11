"""Where scores stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orpo_ray.evaluation.store import ScoreFolder
from orpo_ray.parsing import read_object
from orpo_ray.status.evaluation import pieces_of
from orpo_ray.status.status import Status, again, age_of, driver_of, state_of


def score_status(folder: Path, config: dict[str, Any], text: str) -> Status:
    """The pieces that are there are counted; of a label with other settings before, the newest."""
    files = ScoreFolder(folder)
    account = read_object(files.account) if files.account.is_file() else {}
    records, blocks = (value if isinstance(value := account.get(key), int) else None for key in ("kept", "blocks"))
    judges = config.get("reward_models")
    labels = list(judges) if isinstance(judges, dict) else []
    scored = min((len(pieces_of(files.rewards, label)) for label in labels), default=0)
    # Pieces that were removed to save room do not unfinish it.
    finished = files.summary.is_file() and scored in (0, blocks)
    driver = driver_of(folder, config)
    age = age_of([files.config, *files.rewards.glob("*/*.parquet")])
    state = state_of(finished, age, driver)
    facts = {"records": records, "reward_models": labels, "scored_blocks": scored, "blocks": blocks}
    brief = f"{scored} of {'an unknown number' if blocks is None else blocks} blocks"
    rows = [
        ("records", "an unknown number" if records is None else str(records)),
        ("scored", f"{brief} by {', '.join(map(str, labels))}"),
    ]
    if state == "finished":
        following = f"open {files.scores}"
    else:
        following = f"orpo-ray status {folder}" if state == "running" else again("score", folder, config, text)
    name = str(config.get("name", folder.name))
    return Status("scores", name, str(folder), state, driver, age, facts, rows, following, brief)
