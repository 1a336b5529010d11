"""The files that a sweep leaves: its table, its summary, and the configuration to train with."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.csv

from orpo_ray.config import SweepConfig, read_yaml
from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, member
from orpo_ray.storage.run_folder import write_atomically, write_table
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger, Trial
from orpo_ray.tuning.stopping import rungs


def write_results(folder: SweepFolder, ledger: Ledger) -> None:
    """`results.parquet` and `results.csv`: a row for each evaluation of each trial."""
    rows = ledger.rows()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in columns})
    write_table(folder.results_parquet, table)
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    write_atomically(folder.results_csv, sink.getvalue().to_pybytes().decode())


def _column(values: list[Any]) -> pa.Array:
    # CSV has no lists and mappings.
    values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a choice between numbers and names
        return pa.array([None if value is None else str(value) for value in values])


def write_best(folder: SweepFolder, config: SweepConfig, winner: Trial) -> None:
    """`best.yaml`: the winner's whole configuration, under a name and storage of its own."""
    training = config.training(winner.settings, f"{config.name}-best", config.storage)
    # By as many threads as the trial had: by others its numbers would come out again but for their last digits.
    file = folder.trial(winner.index).config
    try:
        cpus = member(member(read_yaml(file), "scaling", dict), "cpus_per_worker", *NUMBER, str)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    scaling = training.scaling.model_copy(update={"cpus_per_worker": cpus})
    training = training.model_copy(update={"scaling": scaling})
    head = f"# Trial {winner.index:03d} of the sweep {config.name}: orpo-ray train {folder.best}\n"
    write_atomically(folder.best, head + training.to_yaml())


def summary(
    config: SweepConfig, ledger: Ledger, total_steps: int, winner: Trial | None, rates: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `sweep.json` says of the trials."""
    return {
        "name": config.name,
        "metric": config.metric,
        "mode": config.mode,
        "trade_off": config.trade_off,
        "space": config.space,
        "total_steps": total_steps,
        "unlike_lengths": config.unlike_lengths,
        "rungs": rungs(config, total_steps),
        "trials": [
            {
                "trial": trial.index, "settings": trial.settings, "status": ledger.status(trial),
                "steps": ledger.steps(trial), "steps_run": trial.steps_run, "total_steps": trial.total_steps,
                "value": ledger.value(trial), "kept": ledger.kept(trial), "unseen": ledger.unseen(trial),
                "start_seconds": trial.start,
                "reason": trial.failure,
            }
            for trial in ledger.trials
        ],
        "ranking": [trial.index for trial in ledger.ranking()],
        "front": [trial.index for trial in ledger.front()] if config.trade_off else [],
        "winner": winner and winner.index,
        "flattered": winner and ledger.flattered(winner),
        "finalists": rates,
        "steps": sum(ledger.steps(trial) for trial in ledger.trials),
        "steps_run": sum(trial.steps_run for trial in ledger.trials),
        "steps_of_all": sum(trial.total_steps for trial in ledger.trials),
    }  # fmt: skip


def write_summary(folder: SweepFolder, found: dict[str, Any]) -> None:
    write_atomically(folder.summary, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
