"""Reports of folders whose files are damaged: drawn from what can be read, or one plain line that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_run import make_evaluation
from fuzzing import assert_one_line, cases, damaged, damages, odd_values
from hypothesis import example, given
from hypothesis import strategies as st
from test_report import make_run
from test_sweep_results import STEPS, write_run
from test_sweep_results import config as sweep_config

from orpo_ray.errors import UserError
from orpo_ray.report import comparison_tables as tables
from orpo_ray.report import write_comparison, write_evaluation_report, write_report, write_sweep_report
from orpo_ray.report.comparison import read_runs
from orpo_ray.report.comparison_figures import Lines, held_out_curves, loop_curves, training_curves
from orpo_ray.report.comparison_page import apart, remarks
from orpo_ray.report.evaluation_folder import read_evaluation
from orpo_ray.report.page import run_page
from orpo_ray.report.runs import read_run
from orpo_ray.report.sweep_folder import read_sweep
from orpo_ray.status.read import read_status
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import summary, write_results, write_summary

RUN_FILES = ["config.yaml", "metrics.jsonl", "summary.json"]
EVALUATION_FILES = ["config.yaml", "winrates.json", "prompts.parquet", "results.parquet"]
SWEEP_FILES = ["config.yaml", "sweep.json", "results.parquet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "sound", steps=6)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "sound", ("sft", "orpo"), prompts=5, rounds=1)


def copy(sound: Path) -> Path:
    folder = sound.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    return folder


@given(st.sampled_from(RUN_FILES), damages)
@cases(500)
def test_a_run_with_a_damaged_file(run: Path, file: str, damage: list[tuple[str, int, int]]) -> None:
    folder = copy(run)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), damage))
    try:
        read = read_run(folder)
    except UserError as error:
        assert_one_line(error, str(folder))
    else:
        run_page(read, [])
    try:
        said_of([run, folder])
    except UserError as error:
        assert_one_line(error, str(folder))
    try:
        read_status(folder)
    except UserError as error:
        assert_one_line(error, str(folder))


def said_of(folders: list[Path]) -> None:
    """All of their page but the drawings."""
    runs = read_runs(folders)
    lines = Lines(runs)
    held_out, trained = held_out_curves(runs, lines), training_curves(runs, lines)
    assert isinstance(apart(held_out, trained), str) and isinstance(remarks(runs, lines), list)
    assert all(isinstance(each.caption, str) for each in [*held_out, *trained, *loop_curves(runs, lines)])
    for table in (tables.settings, tables.standings, tables.numbers, tables.contrasts):
        table(runs)


METRICS = [
    "step", "epoch", "loss", "eval_loss", "eval_win_rate", "eval_win_rate_low", "eval_win_rate_high", "skipped",
    "pairs_per_second", "logps_chosen", "lr", "note",
]  # fmt: skip
SECTIONS = ["name", "model", "data", "objective", "train", "eval", "note"]


@given(
    st.dictionaries(st.sampled_from(METRICS), odd_values, max_size=4),
    st.dictionaries(
        st.sampled_from(SECTIONS),
        odd_values
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "lambda",
                    "max_steps",
                    "epochs",
                    "win_rate",
                    "train",
                    "dtype",
                    "keep_by",
                    "keep_mode",
                    "eval",
                    "global_batch_size",
                    "reference",
                    "nll_tokens",
                ]
            ),
            odd_values,
        ),
        max_size=3,
    ),
    st.none() | st.dictionaries(st.sampled_from(["best_step", "seconds", "pairs", "steps"]), odd_values),
)
@example({"step": 2**70}, {}, None)
@example({"step": 1, "loss": 10**400}, {}, None)
@example({}, {}, {"seconds": float("inf")})
@example({}, {"objective": {"lambda": 10**400}}, None)
@cases(500)
def test_a_run_with_odd_values(
    run: Path, metrics: dict[str, Any], sections: dict[str, Any], summary: dict[str, Any] | None
) -> None:
    folder = copy(run)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, **metrics}) + "\n")
    (folder / "config.yaml").write_text(json.dumps({"name": "r", **sections}))
    (folder / "summary.json").unlink()
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    try:
        read = read_run(folder)
    except UserError as error:
        assert_one_line(error, str(folder))
    else:
        run_page(read, [])
    try:
        said_of([run, folder])
    except UserError as error:
        assert_one_line(error, str(folder))


@given(st.dictionaries(st.sampled_from(METRICS[1:-1]), st.lists(odd_values, min_size=1, max_size=3), min_size=1))
@example({"eval_win_rate": [0.5]})
@example({"eval_win_rate": [0.5, 0.5], "eval_win_rate_low": [0.4, 0.4], "eval_win_rate_high": [0.6]})
@example({"skipped": [3]})
@cases(8)
def test_figures_of_odd_values(run: Path, metrics: dict[str, list[Any]]) -> None:
    folder = copy(run)
    with (folder / "metrics.jsonl").open("a") as file:
        for name, values in metrics.items():
            file.writelines(json.dumps({"step": 7 + i, name: value}) + "\n" for i, value in enumerate(values))
    for draw in (lambda: write_report(folder), lambda: write_comparison([folder, run])):
        try:
            draw()
        except UserError as error:
            assert_one_line(error, str(folder / "metrics.jsonl"))


@given(st.sampled_from(EVALUATION_FILES), damages.filter(bool))
@cases(400)
def test_an_evaluation_with_a_damaged_file(evaluation: Path, file: str, damage: list[tuple[str, int, int]]) -> None:
    folder = copy(evaluation)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), damage))
    try:
        read_evaluation(folder)
    except UserError as error:
        assert_one_line(error, str(folder))


def change(numbers: Any, place: str, is_set: bool, value: Any) -> None:
    """Set what a dotted place of `numbers` holds, or remove it; nothing where there is no such place."""
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    holder = numbers
    for part in path:
        holder = holder[part] if part in (range(len(holder)) if isinstance(holder, list) else holder or ()) else None
    if isinstance(holder, list | dict) and (isinstance(holder, dict) or holder):
        if is_set:
            holder[last] = value
        elif isinstance(holder, dict):
            holder.pop(last, None)


PLACES = [
    "models.sft", "models", "reward_models", "reward_models.truth", "pairs", "pairs.0", "pairs.0.model", "pairs.0.ci95",
    "pairs.0.win_rate", "pairs.0.reward_model", "ratings", "ratings.truth", "ratings.truth.0.model", "rewards", "name",
    "rewards.truth", "agreement", "agreement.0.reward_models", "notes", "sampling.max_tokens", "models.sft.path", "tie",
    "models.sft.diversity", "models.sft.odds", "models.sft.not_generated", "rounds", "prompts",
]  # fmt: skip


def with_odd_numbers(original: Path, file: str, changes: list[tuple[str, bool, Any]]) -> Path:
    """A copy of a folder, with values in one of its JSON files changed or missing."""
    folder = copy(original)
    numbers = json.loads((folder / file).read_text())
    for place, is_set, value in changes:
        change(numbers, place, is_set, value)
    (folder / file).write_text(json.dumps(numbers))
    return folder


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.booleans(), odd_values), min_size=1, max_size=2))
@example([("ratings.truth.0.model", True, "nobody")])
@example([("pairs.0.reward_model", True, "nobody")])
@cases(25)
def test_an_evaluation_with_odd_numbers(evaluation: Path, changes: list[tuple[str, bool, Any]]) -> None:
    folder = with_odd_numbers(evaluation, "winrates.json", changes)
    try:
        write_evaluation_report(folder)
    except UserError as error:
        assert_one_line(error, str(folder))


COLUMNS = ["prompt", "model", "round", "text", "tokens", "ended", "reward:truth"]
ODD_COLUMNS = {
    "null": lambda n: pa.nulls(n), "text": lambda n: pa.array(["x"] * n), "list": lambda n: pa.array([[1]] * n),
    "huge": lambda n: pa.array([2**63 - 1] * n), "nan": lambda n: pa.array([float("nan")] * n),
    "bytes": lambda n: pa.array([b"\xff"] * n), "some null": lambda n: pa.array([None] + ["1"] * (n - 1)),
}  # fmt: skip


@pytest.mark.parametrize("file", ["results.parquet", "prompts.parquet"])
@pytest.mark.parametrize("kind", ODD_COLUMNS)
def test_an_evaluation_with_odd_columns(evaluation: Path, file: str, kind: str) -> None:
    for column in COLUMNS:
        folder = copy(evaluation)
        table = pq.read_table(folder / file)
        if column not in table.column_names:
            continue
        odd = ODD_COLUMNS[kind](len(table))
        pq.write_table(table.set_column(table.column_names.index(column), column, odd), folder / file)
        try:
            read_evaluation(folder)
        except UserError as error:
            assert_one_line(error, str(folder))


# Sweeps --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five trials, two of them compared by win-rate; without the trials' own folders, which runs are tested with."""
    own = sweep_config(tmp_path_factory.mktemp("sweep"), "trials=5", "trade_off={eval_logps_chosen: max}",
                       "scheduler=none")  # fmt: skip
    folder = SweepFolder(own)
    folder.open_for(own)
    searcher, ledger = searcher_of(own), Ledger(own, folder, STEPS)
    for index in range(5):
        write_run(folder.trial(index).path, searcher.settings(index, []))
        ledger.begin(searcher.settings(index, []))
    write_results(folder, ledger)
    best, second = ledger.ranking()[:2]
    rate = {"win_rate": 0.62, "ci95": [0.58, 0.66], "p_holm": 1e-4, "told_apart": True}
    rates = [{"trial": best.index, **rate}, {"trial": second.index, **rate, "behind": rate}]
    write_summary(folder, summary(own, ledger, STEPS, best, rates) | {"lag": 1, "seconds": 9.0, "finished": "yes"})
    shutil.rmtree(folder.trials)
    return folder.path


@given(st.sampled_from(SWEEP_FILES), damages.filter(bool))
@cases(400)
def test_a_sweep_with_a_damaged_file(sweep: Path, file: str, damage: list[tuple[str, int, int]]) -> None:
    folder = copy(sweep)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), damage))
    for read in (read_sweep, read_status):
        try:
            read(folder)
        except UserError as error:
            assert_one_line(error, str(folder))


PLACES_OF_A_SWEEP = [
    "name", "metric", "mode", "trade_off", "space", "space.optim.lr", "total_steps", "rungs", "rungs.0", "trials",
    "trials.0", "trials.0.trial", "trials.0.settings", "trials.0.settings.x", "trials.0.status", "trials.0.steps",
    "trials.0.kept", "trials.0.unseen", "trials.0.total_steps", "flattered",
    "trials.0.value", "trials.0.reason", "ranking", "ranking.0", "front", "front.0", "winner", "finalists",
    "finalists.0.ci95", "finalists.0.win_rate", "finalists.1.behind", "finalists.0.trial", "steps", "steps_run",
    "steps_of_all", "seconds", "finished",
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(PLACES_OF_A_SWEEP), st.booleans(), odd_values), min_size=1, max_size=2))
@example([("winner", True, 77)])
@example([("front.0", True, 77)])
@example([("finalists.1.behind", True, None)])
@example([("trials.0.settings", True, {})])
@example([("trials.0.value", True, float("nan"))])
@example([("trials.0.value", True, 1e308)])
@example([("total_steps", True, 0)])
@example([("trials.0.total_steps", True, 10**400)])
@example([("trials.0.kept", True, -1)])
@example([("seconds", True, float("inf"))])
@example([("rungs", True, [10**30])])
@cases(30)
def test_a_sweep_with_odd_numbers(sweep: Path, changes: list[tuple[str, bool, Any]]) -> None:
    folder = with_odd_numbers(sweep, "sweep.json", changes)
    for read in (read_status, write_sweep_report):
        try:
            read(folder)
        except UserError as error:
            assert_one_line(error, str(folder))


@pytest.mark.parametrize("kind", ODD_COLUMNS)
def test_a_sweep_with_odd_columns(sweep: Path, kind: str) -> None:
    for column in ("trial", "step", "eval_reward_accuracy", "eval_logps_chosen"):
        folder = copy(sweep)
        table = pq.read_table(folder / "results.parquet")
        odd = ODD_COLUMNS[kind](len(table))
        pq.write_table(table.set_column(table.column_names.index(column), column, odd), folder / "results.parquet")
        try:
            (write_sweep_report if column == "eval_reward_accuracy" else read_sweep)(folder)
        except UserError as error:
            assert_one_line(error, str(folder))
