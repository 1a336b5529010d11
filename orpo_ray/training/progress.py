"""The driver's progress bar, fed by the run's own `metrics.jsonl`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from orpo_ray.beside import beside
from orpo_ray.parsing import object_from_json
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console

Line = dict[str, Any]

_POLL_SECONDS = 0.3
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(folder: RunFolder, name: str, total_steps: int, console: Console) -> Iterator[None]:
    """Show loss, margin, pairs/s, time left and events while the body runs; plain lines where there is no terminal."""
    watch = _bar if console.is_terminal else _lines
    files = (folder.metrics, folder.events)
    held = {file: file.stat().st_size if file.is_file() else 0 for file in files}  # is no news
    with following(held, lambda news: watch(news, name, total_steps, console)):
        yield


def following(
    offsets: dict[Path, int], receive: Callable[[Iterator[list[Line]]], None]
) -> AbstractContextManager[None]:
    """While the body runs, `receive` has, in a thread, the whole lines appended to files behind their `offsets`."""
    return beside(lambda over: receive(_news(offsets, over)))


def _bar(news: Iterator[list[Line]], name: str, total_steps: int, console: Console) -> None:
    columns = (
        TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total_steps, figures="starting workers")
        for lines in news:
            for line in lines:
                if "event" in line:
                    console.say(f"  {line['event']}")
                elif "loss" in line:
                    progress.update(task, completed=line["step"], figures=_figures(line))
                else:
                    console.say(f"  {_evaluation(line)}")


def _lines(news: Iterator[list[Line]], name: str, total_steps: int, console: Console) -> None:
    last = 0.0
    for lines in news:
        for line in lines:
            if "event" in line:
                console.say(f"{name}: {line['event']}")
            elif "loss" not in line:
                console.say(f"{name}: {_evaluation(line)}")
            elif time.monotonic() - last > _SECONDS_BETWEEN_LINES or line["step"] == total_steps:
                last = time.monotonic()
                console.say(f"{name}: step {line['step']}/{total_steps} {_figures(line)}")


def _figures(line: Line) -> str:
    found = next((line[name] for name in ("reward_margin", "log_odds_ratio") if line.get(name) is not None), None)
    margin = "" if found is None else f" margin {found:+.3f}"
    loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
    return f"loss {loss}{margin} {line['pairs_per_second']:.1f} pairs/s"


def _evaluation(line: Line) -> str:
    shown = {
        "loss": "loss", "logps_chosen": "chosen", "logps_rejected": "rejected", "log_odds_ratio": "log odds ratio",
        "reward_margin": "margin", "reward_accuracy": "accuracy", "win_rate": "win-rate",
    }  # fmt: skip
    values = {label: line.get(f"eval_{name}") for name, label in shown.items()}
    figures = [f"{label} {value:.4g}" for label, value in values.items() if value is not None]
    return f"step {line['step']}: held-out " + "  ".join(figures)


def _news(offsets: dict[Path, int], stop: threading.Event) -> Iterator[list[Line]]:
    """Whole lines appended to files behind their `offsets` since the last look, until `stop`."""
    while True:
        stopping = stop.wait(_POLL_SECONDS)
        for file, offset in offsets.items():
            if file.is_file():
                lines, offsets[file] = _new_lines(file, offset)
                yield lines
        if stopping:
            return


def _new_lines(path: Path, offset: int) -> tuple[list[Line], int]:
    """The whole lines behind `offset`, and where they end."""
    offset = min(offset, path.stat().st_size)  # a resumed run first drops the steps it will repeat
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    lines = [line for text in whole.splitlines() if (line := _line(text)) is not None]
    return lines, offset + len(whole)


def _line(text: bytes) -> Line | None:
    """None: neither metrics nor an event; who reads the whole file says so."""
    try:
        line = object_from_json(text)
    except ValueError:
        return None
    return line if "event" in line or type(line.get("step")) is int else None
