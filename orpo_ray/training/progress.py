"""The driver's progress bar, fed by the run's own `metrics.jsonl`."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
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
from orpo_ray.config import read_yaml
from orpo_ray.parsing import object_from_json
from orpo_ray.storage.rounds import Rounds, RoundWatch
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console

Line = dict[str, Any]

_POLL_SECONDS = 0.3
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0  # at what is drawn
_RECENT_ROUNDS = 5
_OF_A_ROUND = {"reward": "reward", "kl": "KL"}


@contextmanager
def progress_bar(folder: RunFolder, name: str, total_steps: int, console: Console) -> Iterator[None]:
    """Show loss, margin, pairs/s, time left and events while the body runs; plain lines where there is no terminal. Of
    rollouts, reward and KL of the last round, and how far the present one is drawn."""
    watch = _bar if console.is_terminal else _lines
    files = (folder.metrics, folder.events)
    held = {file: file.stat().st_size if file.is_file() else 0 for file in files}  # is no news
    told = _Told(folder, total_steps)
    with following(held, lambda news: watch(news, name, told, console)):
        yield


def following(
    offsets: dict[Path, int], receive: Callable[[Iterator[list[Line]]], None]
) -> AbstractContextManager[None]:
    """While the body runs, `receive` has, in a thread, the whole lines appended to files behind their `offsets`."""
    return beside(lambda over: receive(_news(offsets, over)))


class _Told:
    """What is said of training lines, which may come in rounds."""

    def __init__(self, folder: RunFolder, total_steps: int) -> None:
        self.total_steps = total_steps
        self.rounds = Rounds.of(read_yaml(folder.config)) if folder.config.is_file() else None
        self._watch = RoundWatch(folder.path)
        self._of_round: dict[str, float] = {}
        self._begun: deque[tuple[int, float]] = deque(maxlen=_RECENT_ROUNDS)
        """Steps that were the first of their round, and when they were done."""
        self._step = 0
        self._looked = 0.0

    def line(self, line: Line) -> str:
        self._step = line["step"]
        if self.rounds is None:
            return _figures(line)
        if "round" in line:
            self._of_round = {name: line[name] for name in _OF_A_ROUND if _is_finite(line.get(name))}
            self._begun.append((line["step"], time.monotonic()))
        found = "".join(f" {_OF_A_ROUND[name]} {value:.4g}" for name, value in self._of_round.items())
        return f"{_loss(line)}{found} {line['pairs_per_second']:.1f} responses/s"

    def between(self) -> str | None:
        """Between two steps: what is drawn, where something is; looked for now and then."""
        if self.rounds is None or time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return None
        self._looked = time.monotonic()
        drawn = self._watch.drawn()
        return None if drawn is None else self.rounds.told(drawn, self._step, self.total_steps)

    def left(self) -> str:
        """Hours, minutes and seconds, by the time that whole rounds took: their steps come in bursts."""
        if len(self._begun) < 2:
            return "-:--:--"
        (first, began), (last, now) = self._begun[0], self._begun[-1]
        needed = (self.total_steps - last) * (now - began) / max(1, last - first)
        return str(timedelta(seconds=max(0, round(needed - (time.monotonic() - now)))))


def _bar(news: Iterator[list[Line]], name: str, told: _Told, console: Console) -> None:
    left = (
        TimeRemainingColumn() if told.rounds is None else TextColumn("{task.fields[left]}", style="progress.remaining")
    )
    columns = (
        TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(), TextColumn("left"), left,
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=told.total_steps, figures="starting workers", left="")
        for lines in news:
            for line in lines:
                if "event" in line:
                    console.say(f"  {line['event']}")
                elif "loss" in line:
                    progress.update(task, completed=line["step"], figures=told.line(line))
                else:
                    console.say(f"  {_evaluation(line)}")
            if told.rounds is not None:
                between = told.between()
                progress.update(task, left=told.left())
                if between is not None:
                    progress.update(task, figures=between)


def _lines(news: Iterator[list[Line]], name: str, told: _Told, console: Console) -> None:
    last = 0.0
    for lines in news:
        for line in lines:
            if "event" in line:
                console.say(f"{name}: {line['event']}")
            elif "loss" not in line:
                console.say(f"{name}: {_evaluation(line)}")
            else:
                figures = told.line(line)
                if time.monotonic() - last > _SECONDS_BETWEEN_LINES or line["step"] == told.total_steps:
                    last = time.monotonic()
                    console.say(f"{name}: step {line['step']}/{told.total_steps} {figures}")
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES and (between := told.between()) is not None:
            last = time.monotonic()
            console.say(f"{name}: {between}")


def _figures(line: Line) -> str:
    found = next((line[name] for name in ("reward_margin", "log_odds_ratio") if line.get(name) is not None), None)
    margin = "" if found is None else f" margin {found:+.3f}"
    return f"{_loss(line)}{margin} {line['pairs_per_second']:.1f} pairs/s"


def _loss(line: Line) -> str:
    return f"loss {'not finite' if line['loss'] is None else format(line['loss'], '.4f')}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _evaluation(line: Line) -> str:
    shown = {
        "loss": "loss", "logps_chosen": "chosen", "logps_rejected": "rejected", "log_odds_ratio": "log odds ratio",
        "reward_margin": "margin", "reward_accuracy": "accuracy", "reward": "reward", "kl": "KL",
        "response_tokens": "tokens", "share_cut": "cut", "entropy": "entropy", "win_rate": "win-rate",
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
