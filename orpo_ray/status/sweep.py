"""Where a sweep stands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orpo_ray.config import SweepConfig
from orpo_ray.report.sweep_folder import Numbers, Trial, read_numbers
from orpo_ray.status.status import Status, again, age_of, driver_of, duration, state_of


def sweep_status(folder: Path, config: dict[str, Any], text: str) -> Status:
    """Raises `UserError` where `sweep.json` cannot be read."""
    age = age_of([folder / "config.yaml", folder / "sweep.json", *folder.glob("trials/*/metrics.jsonl")])
    total = _number_of_trials(config)
    numbers = read_numbers(folder) if (folder / "sweep.json").is_file() else None
    counts = Counter(trial.status for trial in numbers.trials) if numbers else Counter[str]()
    over = sum(counts.values()) - counts["unfinished"]
    driver = driver_of(folder, config)
    state = state_of(numbers is not None and bool(numbers.finished), age, driver)
    best = _best(numbers) if numbers else None
    left = numbers.seconds / over * max(0, total - over) if numbers and over and total is not None else None
    facts: dict[str, Any] = {
        "trials": total, "finished": counts["finished"], "stopped": counts["stopped"], "failed": counts["failed"],
        "unfinished": counts["unfinished"], "best": best.model_dump() if best else None,
        "seconds_left": None if state == "finished" else left,
    }  # fmt: skip
    done = f"{over} of {'an unknown number' if total is None else total}"
    rows = [
        ("trials", f"{done} done: {counts['finished']} finished, "
         f"{counts['stopped']} stopped early, {counts['failed']} failed"),
    ]  # fmt: skip
    brief = f"{done} trials"
    at_work = [trial for trial in (numbers.trials if numbers else []) if trial.status == "unfinished"]
    if numbers and at_work:
        steps = ", ".join(
            f"{trial.label} (step {trial.steps_run} of {trial.total_steps or numbers.total_steps})" for trial in at_work
        )
        rows.append(("at work" if state == "running" else "begun", steps))
    if numbers and best:
        settings = "  ".join(f"{key}={value}" for key, value in best.settings.items())
        found = f"trial {best.label}: {numbers.metric} {best.value:.4g}"
        label = "winner" if state == "finished" else "best so far"
        rows.append((label, f"{found}  {settings}"))
        brief += f", {label} {found}"
    if facts["seconds_left"] is not None:
        of_work = "" if state == "running" else " of work, once it goes on"
        rows.append(("left", f"about {duration(facts['seconds_left'])}{of_work}"))
    failed = [(f"trial {trial.label}", trial.reason) for trial in (numbers.trials if numbers else []) if trial.reason]
    if state == "finished":
        following = f"orpo-ray train {folder / 'best.yaml'}"
    else:
        following = f"orpo-ray report {folder}" if state == "running" and numbers else ""
        following = following or again("sweep", folder, config, text)
    name = str(config.get("name", folder.name))
    return Status("sweep", name, str(folder), state, driver, age, facts, rows, following, brief, failed)


def _number_of_trials(config: dict[str, Any]) -> int | None:
    try:
        return SweepConfig.model_validate(config).number_of_trials
    except ValidationError:  # secrets that are masked in it may be what is missing
        return None


def _best(numbers: Numbers) -> Trial | None:
    """The winner, where it is known, else the first of the ranking, if its value is known."""
    index = numbers.winner if numbers.winner is not None else next(iter(numbers.ranking), None)
    found = next((trial for trial in numbers.trials if trial.trial == index), None)
    return found if found is not None and found.value is not None else None
