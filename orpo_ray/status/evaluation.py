"""Where an evaluation stands."""

from __future__ import annotations

import glob
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.config.evaluation import MOST_TURNS, names_outputs
from orpo_ray.errors import UserError
from orpo_ray.evaluation.store import PROMPTS_IN_BLOCK, EvaluationFolder
from orpo_ray.report.evaluation_folder import Numbers, Pair, read_numbers
from orpo_ray.report.leaderboard_tables import own_numbers
from orpo_ray.status.status import Status, again, age_of, driver_of, state_of


def evaluation_status(folder: Path, config: dict[str, Any], text: str) -> Status:
    """The pieces that are there are counted; of a label asked with other settings before, the newest.

    Raises `UserError` where `winrates.json` cannot be read.
    """
    prompts = _rows(folder / "prompts.parquet")
    sampling, models, judges = (config.get(key) for key in ("sampling", "models", "reward_models"))
    rounds = sampling.get("rounds") if isinstance(sampling, dict) else None
    rounds = rounds if isinstance(rounds, int) else 3
    labels = list(models) if isinstance(models, dict) else []
    judge_labels = list(judges) if isinstance(judges, dict) else []
    turns = _turns(config)
    of_turns = [EvaluationFolder(folder).of_turn(turn) for turn in range(1, turns + 1)]
    asked_labels = [label for label in labels if not names_outputs(config["models"][label])]
    pieces = [pieces_of(each.responses, label) for each in of_turns for label in asked_labels]
    judged = [len(pieces_of(of_turns[-1].rewards, f"{judge}-{label}")) for judge in judge_labels for label in labels]
    responses = sum(_rows(file) or 0 for files in pieces for file in files)
    asked = None if prompts is None else prompts * len(asked_labels) * rounds * turns
    blocks = None if prompts is None else math.ceil(prompts / PROMPTS_IN_BLOCK)
    judged_blocks = min(judged, default=0 if judge_labels else blocks or 0)
    written = sorted((folder / "verdicts").glob("*.jsonl"))
    in_words = config.get("judges")
    verdicts = {file.stem: _lines(file) for file in written}  # by what judges were called when they were asked
    # Pieces that were removed to save room do not unfinish it.
    begun = any(pieces)
    finished = (folder / "winrates.json").is_file() and (not begun or (responses == asked and judged_blocks == blocks))
    age = age_of(
        [folder / "config.yaml", *written, *(file for each in of_turns for file in each.path.glob("re*/*/*.parquet"))]
    )
    driver = driver_of(folder, config)
    state = state_of(finished, age, driver)
    numbers = read_numbers(folder / "winrates.json") if state == "finished" else None
    ahead = _ahead(numbers) if numbers else {}
    measured: dict[str, list[dict[str, Any]]] = {}
    unread = ""
    try:
        measured = own_numbers(numbers.leaderboards, folder / "winrates.json") if numbers else {}
    except UserError as error:  # such as of an earlier version
        unread = str(error)
    facts = {
        "prompts": prompts, "models": labels, "rounds": rounds, "responses": responses, "responses_of_all": asked,
        "judged_blocks": judged_blocks, "blocks": blocks, **({"verdicts": verdicts} if in_words else {}),
        "winners": {judge: pair.model if pair.told_apart else None for judge, pair in ahead.items()},
        **({"leaderboards": measured} if measured else {}),
    }  # fmt: skip
    brief = f"{responses} of {_or(asked)} responses"
    rows = [
        (
            "asked",
            f"{_or(prompts)} prompts, {len(labels)} models x {rounds} rounds"
            + (f" x {turns} turns" if turns > 1 else ""),
        ),
        ("responses", f"{responses} of {_or(asked)}"),
    ]
    if judge_labels or not in_words:
        rows.append(("judged", f"{judged_blocks} of {_or(blocks)} blocks of {PROMPTS_IN_BLOCK} prompts"))
    if in_words:
        rows.append(("verdicts", ", ".join(f"{count} by {label}" for label, count in verdicts.items()) or "none yet"))
    if ahead:
        brief = "; ".join(_said(judge, pair) for judge, pair in ahead.items())
        rows.append(("winner" if any(pair.told_apart for pair in ahead.values()) else "no winner", brief))
    if measured:
        rows += [("scores", f"{name}: {_scored(found)}") for name, found in measured.items()]
        brief = "; ".join(f"{name}: {_scored(found, most=_IN_BRIEF)}" for name, found in measured.items())
    if unread:
        rows.append(("scores", f"cannot be read: {unread}"))
    if state == "finished":
        following = f"open {folder / 'report.html'}"
    else:
        following = f"orpo-ray status {folder}" if state == "running" else again("evaluate", folder, config, text)
    name = str(config.get("name", folder.name))
    return Status("evaluation", name, str(folder), state, driver, age, facts, rows, following, brief)


def _turns(config: dict[str, Any]) -> int:
    prompts = config.get("prompts")
    turns = prompts.get("turns") if isinstance(prompts, dict) else None
    return turns if isinstance(turns, int) and 1 <= turns <= MOST_TURNS else 1


def _ahead(numbers: Numbers) -> dict[str, Pair]:
    """By reward model or judge, the model that it rates best against the next."""
    found = {}
    for judge in numbers.deciders:
        best, *others = [rating.model for rating in numbers.ratings.get(judge, [])] or [""]
        pair = numbers.pair(best, others[0], judge) if others else None
        if pair is not None:
            found[judge] = pair
    return found


def _said(judge: str, pair: Pair) -> str:
    if pair.told_apart:
        return f"{pair.model} by {judge} ({pair.win_rate:.1%} over {pair.against})"
    return f"not told apart by {judge}: {pair.model} and {pair.against} ({pair.win_rate:.1%} for {pair.model})"


_NUMBERS = {
    "score": "{:.2f}", "win_rate": "win-rate {:.2f}%", "length_controlled_winrate": "length-controlled {:.2f}%",
    "prompt_strict": "prompts {:.1f}% strictly", "instruction_strict": "instructions {:.1f}% strictly",
    "prompt_loose": "prompts {:.1f}% loosely", "instruction_loose": "instructions {:.1f}% loosely",
}  # fmt: skip
_IN_BRIEF = 4  # rows of a benchmark's numbers in the line of a list


def _scored(rows: list[dict[str, Any]], most: int | None = None) -> str:
    """Rows of `own_numbers`, at most so many. Rounds are counted from 1, as on the page."""
    several = any(row["round"] for row in rows)
    said = []
    for row in rows[:most]:
        found = ", ".join(form.format(row[name]) for name, form in _NUMBERS.items() if name in row) or "no number"
        judge = f" by {row['judge']}" if "judge" in row else ""
        said.append(f"{row['model']} {found}{judge}" + (f" (round {row['round'] + 1})" if several else ""))
    return "; ".join(said) + (f"; and {len(rows) - most} more" if most and len(rows) > most else "")


def pieces_of(folder: Path, label: object) -> list[Path]:
    """Those of the newest settings."""
    folders = [Path(found) for found in glob.glob(f"{glob.escape(str(folder / str(label)))}-{'[0-9a-f]' * 12}")]
    newest = max(folders, key=lambda found: found.stat().st_mtime, default=None)
    return sorted(newest.glob("*.parquet")) if newest is not None else []


def _lines(file: Path) -> int:
    """Verdicts, those of other settings included."""
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0


def _rows(file: Path) -> int | None:
    """None: not there, or not readable."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _or(count: int | None) -> str:
    return "an unknown number" if count is None else str(count)
