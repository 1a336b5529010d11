"""What a sweep shows while it runs: the best five trials, how many are done, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orpo_ray.config import SweepConfig
from orpo_ray.terminal import Console
from orpo_ray.tuning.ledger import Ledger

_SHOWN = 5


@contextmanager
def board(config: SweepConfig, ledger: Ledger, console: Console) -> Iterator[Callable[[], None]]:
    """A table, drawn anew at each call of what this yields; without a terminal, a line for each trial that is over."""
    started = time.monotonic()
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    said: set[int] = set()

    def changed() -> None:
        over = {trial.index for trial in ledger.trials if ledger.over(trial)}
        if live is not None:
            live.update(_table(config, ledger, len(over), time.monotonic() - started), refresh=True)
        else:
            for index in sorted(over - said):
                console.say(_line(config, ledger, index))
        said.update(over)

    with live or nullcontext():
        yield changed


def _line(config: SweepConfig, ledger: Ledger, index: int) -> str:
    trial = ledger.trials[index]
    settings = "  ".join(f"{key}={value}" for key, value in trial.settings.items())
    outcome, status = ledger.outcome(trial), ledger.status(trial)
    told = trial.failure
    if outcome is not None:
        told = "  ".join(f"{metric} {value:.4g}" for metric, value in outcome.items())
        told += f" (step {ledger.kept(trial)})"
    over = sum(ledger.over(other) for other in ledger.trials)
    return (
        f"{config.name}: trial {index:03d} {status} at step {ledger.steps(trial)}: {told}  {settings}  "
        f"({over} of {config.number_of_trials} done)"
    )


def _table(config: SweepConfig, ledger: Ledger, over: int, seconds: float) -> Group:
    table = Table("trial", "status", "step", *config.directions, *config.space)
    for trial in ledger.ranking()[:_SHOWN]:
        values = (ledger.outcome(trial) or {}).values()
        table.add_row(
            f"{trial.index:03d}", ledger.status(trial), str(ledger.steps(trial)), *(f"{value:.4g}" for value in values),
            *(f"{value}" for value in trial.settings.values()),
        )  # fmt: skip
    left = ""
    if over:
        minutes = seconds / over * (config.number_of_trials - over) / 60
        left = f", about {minutes:.0f} min left"
    return Group(table, Text(f"{config.name}: {over} of {config.number_of_trials} trials done{left}"))
