"""Which trial Ray Tune is given next: a function of seed and outcomes, for any speed of trials and after a kill."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from test_sweep_results import STEPS, config, write_run

from orpo_ray.config import SweepConfig
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.room import Share
from orpo_ray.tuning.search import Source

AT_A_TIME = 3


def play(own: SweepConfig, seed: int, killed_after: int | None = None) -> list[dict[str, Any]]:
    """Trials end in a random order, three at a time; after `killed_after` of them all that is not on disk is lost."""
    folder, generator, ended = SweepFolder(own), random.Random(seed), 0
    folder.open_for(own)
    while True:
        ledger = Ledger(own, folder, STEPS)
        source = Source(own, folder, ledger, searcher_of(own), lag=AT_A_TIME, share=Share(1, 0))
        running: list[int] = []
        while ended != killed_after:
            while len(running) < AT_A_TIME and isinstance(given := source.suggest(""), dict):
                running.append(given["index"])
            if not running:
                return [trial.settings for trial in ledger.trials]
            index = running.pop(generator.randrange(len(running)))
            write_run(folder.trial(index).path, ledger.trials[index].settings)
            ledger.refresh(index)
            ended += 1
        killed_after = None


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_the_same_trials_whatever_their_speed_and_after_a_kill(tmp_path: Path, searcher: str) -> None:
    if searcher == "optuna":
        pytest.importorskip("optuna")
    found = [
        play(config(tmp_path / f"{seed}-{kill}", f"searcher={searcher}", "trials=14"), seed, kill)
        for seed, kill in ((0, None), (1, None), (2, 5))
    ]
    assert len(found[0]) == 14
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_budget_of_steps_ends_a_sweep(tmp_path: Path, scheduler: str) -> None:
    budget = 5 * STEPS
    begun = [
        play(config(tmp_path / str(seed), f"scheduler={scheduler}", "trials=90", f"steps={budget}"), seed)
        for seed in range(3)
    ]
    assert begun[0] == begun[1] == begun[2]
    # Trials that are under way when the budget is spent come to their end.
    assert len(begun[0]) == 5 + AT_A_TIME - 1 if scheduler == "none" else len(begun[0]) > 5 + AT_A_TIME
