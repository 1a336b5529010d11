"""What a sweep makes of its trials' folders: who stops, who wins, the table, the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from test_sweep_search import TRAIN

from orpo_ray.config import SweepConfig, load_config, parse_as
from orpo_ray.config.space import Dimension
from orpo_ray.errors import UserError
from orpo_ray.report import write_sweep_report
from orpo_ray.report.sweep_figures import _axis
from orpo_ray.tuning.folder import START, SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import _column, summary, write_best, write_results, write_summary
from orpo_ray.tuning.sweep import keep_the_best

STEPS = 72


def config(storage: Path, *overrides: str) -> SweepConfig:
    mapping = {
        "name": "made-up", "train": TRAIN, "trials": 9, "grace_steps": 8, "storage": {"path": str(storage)},
        "space": {
            "objective.lambda": "loguniform(0.05, 4)", "optim.lr": "loguniform(1e-5, 1e-2)",
            "optim.schedule": "choice(cosine, linear)",
        },
    }  # fmt: skip
    return parse_as(SweepConfig, mapping, list(overrides), "made-up.yaml")


def write_run(folder: Path, settings: dict[str, Any], *, until: int = STEPS, diverges: bool = False) -> None:
    """A run folder as training leaves it, best at λ = 1 and lr = 1e-3."""
    weight, lr = settings["objective.lambda"], settings["optim.lr"]
    worth = 1 - 0.05 * abs(math.log(weight)) - 0.05 * abs(math.log(lr / 1e-3))
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, until + 1, 8):
            value = None if diverges and step > 8 else worth * (0.5 + step / STEPS / 2)
            evaluation = {
                "step": step, "eval_loss": 2.0, "eval_reward_accuracy": value, "eval_logps_chosen": -0.5 - weight / 10,
                "eval_logps_rejected": -0.6 - weight,
            }  # fmt: skip
            file.write(json.dumps(evaluation) + "\n")
            file.write(json.dumps({"step": step + 1, "loss": 1.0}) + "\n")
    for part in ("model", "model-last", "checkpoints/step-00000072", "ray"):
        (folder / part).mkdir(parents=True)
    if until == STEPS:
        (folder / "summary.json").write_text("{}")


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepConfig, SweepFolder, Ledger]:
    """Nine trials: the sixth diverged, the eighth crashed before its first evaluation."""
    own = config(tmp_path)
    folder = SweepFolder(own)
    folder.open_for(own)
    searcher, ledger = searcher_of(own), Ledger(own, folder, STEPS)
    for index in range(9):
        settings = searcher.settings(index, [])
        if index == 5:
            write_run(folder.trial(index).path, settings, until=16, diverges=True)
            folder.fail(index, "step 17: the loss is nan")
        elif index == 7:
            folder.fail(index, "crashed: a worker\nwas lost")
        else:
            write_run(folder.trial(index).path, settings)
        ledger.begin(settings)
    return own, folder, ledger


def test_trials_stop_fail_and_rank(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    own, _, ledger = sweep
    statuses = [ledger.status(trial) for trial in ledger.trials]
    assert (statuses[5], statuses[7]) == ("failed", "failed")
    assert {"finished", "stopped"} < set(statuses)
    ranking = ledger.ranking()
    finished = [trial for trial in ranking if ledger.status(trial) == "finished"]
    assert ranking[: len(finished)] == finished
    values = [ledger.value(trial) for trial in finished]
    assert values == sorted(values, reverse=True)
    assert not {5, 7} & {trial.index for trial in ranking}
    for trial in ledger.trials:
        if statuses[trial.index] == "stopped":  # the folder holds more: it went on until that was decided
            assert max(step for step, _ in ledger.curve(trial, own.metric)) == ledger.steps(trial) < trial.steps_run


def test_the_table_holds_every_evaluation_that_counts(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    _, folder, ledger = sweep
    write_results(folder, ledger)
    rows = pq.read_table(folder.results_parquet).to_pylist()
    assert pyarrow.csv.read_csv(folder.results_csv).num_rows == len(rows)
    for trial in ledger.trials:
        own = [row for row in rows if row["trial"] == trial.index]
        assert all({key: row[key] for key in trial.settings} == trial.settings for row in own)
        if trial.index != 7:
            assert [row["step"] for row in own] == [s for s in range(0, 80, 8) if s <= ledger.steps(trial)]
    assert [(r["step"], r["reason"]) for r in rows if r["trial"] == 7] == [(None, "crashed: a worker was lost")]
    assert [r["eval_reward_accuracy"] is None for r in rows if r["trial"] == 5] == [False, False, True]


def test_best_yaml_is_the_winners_whole_run(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    own, folder, ledger = sweep
    winner = ledger.ranking()[0]
    trial = folder.training(winner.index, winner.settings)
    trial = trial.model_copy(update={"scaling": trial.scaling.model_copy(update={"cpus_per_worker": 3.0})})
    folder.trial(winner.index).config.write_text(trial.to_yaml())  # as its driver did
    write_best(folder, own, winner)
    best = load_config(folder.best)
    assert best.scaling.cpus_per_worker == 3
    assert best.name == "made-up-best"
    different = {"name", "storage"}
    assert best.model_dump(exclude=different) == trial.model_dump(exclude=different)
    assert best.run_dir != trial.run_dir and best.cache_dir == trial.cache_dir


def test_losers_keep_their_numbers_and_lose_their_weight(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    _, folder, ledger = sweep
    for trial, model in ((ledger.trials[0], True), (ledger.trials[1], False)):
        folder.strip(trial.index, trial.settings, model=model)
        run = folder.trial(trial.index)
        assert run.metrics.is_file() and run.finished
        assert not run.checkpoints.exists() and not run.ray.exists()
        assert run.model.exists() == run.model_last.exists() != model


def test_a_folder_holds_one_sweep_which_may_go_on(tmp_path: Path) -> None:
    folder = SweepFolder(config(tmp_path))
    folder.open_for(config(tmp_path))
    write_run(folder.trial(0).path, {"objective.lambda": 1.0, "optim.lr": 1e-3, "optim.schedule": "cosine"}, until=8)
    more = config(tmp_path, "trials=20", "hours=3", "concurrency=2")
    folder.open_for(more)
    assert folder.config.read_text() == more.to_yaml()
    other = config(tmp_path, "seed=1", "train.seed=3")
    with pytest.raises(UserError, match=r"other settings \(train, seed\)"):
        folder.open_for(other)
    folder.trial(11).path.mkdir()
    with pytest.raises(UserError, match=r"holds 12 trials or more, and 9 are asked for"):
        folder.open_for(config(tmp_path))
    assert folder.config.read_text() == more.to_yaml()


def test_a_sweep_goes_on_from_a_model_that_is_spelled_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("runs/sft", "runs/other"):
        (tmp_path / model).mkdir(parents=True)
    own = config(tmp_path, "train.model.name_or_path=runs/sft")
    folder = SweepFolder(own)
    folder.open_for(own)
    write_run(folder.trial(0).path, {"objective.lambda": 1.0, "optim.lr": 1e-3, "optim.schedule": "cosine"}, until=8)
    spelled = config(tmp_path, f"train.model.name_or_path={tmp_path}/runs/sft")
    folder.open_for(spelled)
    assert folder.config.read_text() == spelled.to_yaml()
    write_summary(folder, {"lag": 3, "seconds": 7.0, "finished": own.to_yaml()})
    assert folder.is_finished(spelled)
    with pytest.raises(UserError, match=r"other settings \(train\)"):
        folder.open_for(config(tmp_path, "train.model.name_or_path=./runs/other"))


def test_without_a_trial_that_has_begun_the_corrected_command_takes_the_folder(tmp_path: Path) -> None:
    folder = SweepFolder(config(tmp_path))
    folder.open_for(config(tmp_path))
    folder.trial(0).path.mkdir(parents=True)  # its workers were starting
    (folder.trial(0).path / "log.txt").touch()
    write_summary(folder, {"lag": 3, "seconds": 7.0, "finished": ""})
    right = config(tmp_path, "seed=1")
    folder.open_for(right)
    assert folder.config.read_text() == right.to_yaml() and (folder.begun, folder.held) == ([], {})
    folder.fail(0, "no such file")
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        folder.open_for(config(tmp_path))


def test_nothing_of_a_finished_sweep_is_changed(tmp_path: Path) -> None:
    own = config(tmp_path, "hours=3")
    folder = SweepFolder(own)
    folder.open_for(own)
    write_summary(folder, {"lag": 3, "seconds": 7.0, "finished": own.to_yaml()})
    again = config(tmp_path, "hours=3", "concurrency=5", f"storage.cache={tmp_path / 'cache'}")
    folder.open_for(again)
    assert folder.is_finished(again) and folder.config.read_text() == own.to_yaml()
    more = config(tmp_path, "hours=3", "trials=12")
    folder.open_for(more)
    assert not folder.is_finished(more) and folder.config.read_text() == more.to_yaml()


def test_the_folder_of_a_run_is_not_taken(tmp_path: Path) -> None:
    folder = SweepFolder(config(tmp_path))
    folder.path.mkdir()
    folder.config.write_text("name: made-up\nmodel: {}\n")
    with pytest.raises(UserError, match=r"holds the folder of another kind \(training run\)"):
        folder.open_for(config(tmp_path))


def test_the_page_says_who_won_and_how_sure_that_is(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    own, folder, ledger = sweep
    for index, seconds in enumerate((4.5, 2.5, 2.0)):
        (folder.trial(index).path / START).write_text(json.dumps({"seconds": seconds}))
        ledger.refresh(index)
    write_results(folder, ledger)
    best, second = ledger.ranking()[:2]
    rate = {"win_rate": 0.62, "ci95": [0.58, 0.66], "p_holm": 1e-4, "told_apart": True}
    behind = {"win_rate": 0.51, "ci95": [0.47, 0.55], "p_holm": 0.6, "told_apart": False}
    rates = [{"trial": best.index, **rate}, {"trial": second.index, **rate, "behind": behind}]
    found = summary(own, ledger, STEPS, best, rates)
    write_summary(folder, found | {"seconds": 312.0, "finished": own.to_yaml()})
    page = write_sweep_report(folder.path).read_text()
    assert f"Trial {best.index:03d} is the best: λ = {best.settings['objective.lambda']:.4g}" in page
    assert f"It is not told apart from the runner-up, trial {second.index:03d}" in page
    for title in ("λ × learning rate", "Learning curves", "Rungs", "Parallel coordinates", "What matters"):
        assert f"<h3>{title}</h3>" in page
    assert "<h3>λ and the log-probs</h3>" in page
    assert "crashed: a worker was lost" in page
    share = 100 * found["steps_run"] / found["steps_of_all"]
    assert f"{share:.0f}% of running every trial to its end" in page
    assert "2.5 s" in page and "from its turn to its first step, at the median; 9 s of all trials" in page


def test_the_page_of_a_sweep_under_way(sweep: tuple[SweepConfig, SweepFolder, Ledger]) -> None:
    own, folder, ledger = sweep
    write_results(folder, ledger)
    write_summary(folder, summary(own, ledger, STEPS, None, []) | {"seconds": 31.0, "finished": ""})
    page = write_sweep_report(folder.path).read_text()
    assert "Not finished when this page was drawn. 9 of 9 trials begun: " in page
    best = ledger.ranking()[0]
    assert f"Trial {best.index:03d} is the best so far: " in page and "is the best:" not in page
    assert "Best eval_reward_accuracy so far" in page
    assert "its best one so far" in page


def test_trials_that_are_not_done_are_called_so_and_what_lambda_did_is_computed(tmp_path: Path) -> None:
    own = config(tmp_path, "scheduler=none")
    folder = SweepFolder(own)
    folder.open_for(own)
    ledger = Ledger(own, folder, STEPS)
    for index, weight in enumerate((0.1, 0.5, 1.0, 2.0, 3.0)):
        settings = {"objective.lambda": weight, "optim.lr": 1e-3, "optim.schedule": "cosine"}
        write_run(folder.trial(index).path, settings, until=40 if index == 4 else STEPS)
        ledger.begin(settings)
    write_results(folder, ledger)
    write_summary(folder, summary(own, ledger, STEPS, None, []) | {"seconds": 31.0, "finished": ""})
    page = write_sweep_report(folder.path).read_text()
    assert "5 of 9 trials begun: 4 finished, 1 unfinished." in page
    assert "A line is a trial; dashed: unfinished." in page
    assert "chosen, unfinished" in page and "stopped early" not in page
    assert "Spearman's ρ is 1.00 over 4 trials." in page.replace("&#39;", "'")
    assert "the paler end was computed" not in page


def test_a_trade_off_has_a_front_and_a_figure(tmp_path: Path) -> None:
    """Accuracy is best at λ = 1, and chosen log-probs are the higher the lower λ: what is beyond 1 is in no front."""
    own = config(tmp_path, "scheduler=none", "trials=5", "trade_off={eval_logps_chosen: max}")
    folder = SweepFolder(own)
    folder.open_for(own)
    ledger = Ledger(own, folder, STEPS)
    for weight in (2.0, 0.5, 1.0, 0.25, 4.0):
        settings = {"objective.lambda": weight, "optim.lr": 1e-3, "optim.schedule": "cosine"}
        write_run(folder.trial(len(ledger.trials)).path, settings)
        ledger.begin(settings)
    assert [trial.index for trial in ledger.front()] == [1, 2, 3]
    assert [trial.index for trial in ledger.ranking()] == [2, 1, 3, 0, 4]
    winner = ledger.ranking()[0]
    write_results(folder, ledger)
    found = summary(own, ledger, STEPS, winner, [])
    assert found["front"] == [1, 2, 3]
    write_summary(folder, found | {"seconds": 1.0, "finished": own.to_yaml()})
    page = write_sweep_report(folder.path).read_text()
    assert "<h3>eval_reward_accuracy against eval_logps_chosen</h3>" in page
    assert page.count("☆</th>") == 2 and page.count("★</th>") == 1


def test_a_page_without_a_sweep_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read"):
        write_sweep_report(tmp_path)


def test_a_trial_that_may_yet_be_stopped_takes_nobodys_place(tmp_path: Path) -> None:
    """The last trial is the best that finished, and the first is not over: models of both it and the next best stay."""
    own = config(tmp_path, "keep=1", "trials=4", "scheduler=none")
    folder, searcher = SweepFolder(own), searcher_of(own)
    ledger = Ledger(own, folder, STEPS)
    worths = [0.1, 0.3, 0.2, 0.9]
    for index, worth in enumerate(worths):
        settings = searcher.settings(index, []) | {"objective.lambda": math.exp(worth - 1), "optim.lr": 1e-3}
        write_run(folder.trial(index).path, settings, until=16 if index == 1 else STEPS)
        ledger.begin(settings)
    keep_the_best(own, folder, ledger)
    assert [folder.trial(index).model.exists() for index in range(4)] == [True, True, True, True]
    folder.fail(1, "lost")
    ledger.refresh(1)
    keep_the_best(own, folder, ledger)
    assert [folder.trial(index).model.exists() for index in range(4)] == [False, False, False, True]


def test_options_of_a_storage_url_stay_behind_it(tmp_path: Path) -> None:
    own = config(tmp_path, "storage.checkpoints=s3://bucket/all/?region=eu-west-1")
    trial = SweepFolder(own).training(3, own.first_point)
    assert trial.checkpoints_location == f"s3://bucket/all/{own.name}/003?region=eu-west-1"


@pytest.mark.parametrize("ends", [(1e-5, 3e-4), (1e-6, 5e-5), (0.02, 0.5), (0.02, 2), (1, 20), (0.03, 3), (1e-6, 1e-2)])
def test_a_log_axis_has_labels_to_read_it_by(ends: tuple[float, float]) -> None:
    """However short it is: at powers of ten alone one of 1.4 decades may have a single label."""
    figure = Figure(figsize=(4.6, 3.0))
    axes = figure.subplots()
    axes.plot(ends, [0, 1])
    _axis(axes, "x", "optim.lr", Dimension("loguniform", ends))
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    labels = [label.get_text() for at, label in ticks if low <= at <= high and label.get_text()]
    assert axes.get_xscale() == "log" and 3 <= len(labels) <= 8 and len(set(labels)) == len(labels)
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_settings_that_are_lists_or_mappings_have_a_column_too(tmp_path: Path) -> None:
    table = pa.table({"optim": _column([{"lr": 1e-5}, None, {"lr": 1e-4}]), "layers": _column([["q"], ["q", "v"], []])})
    pyarrow.csv.write_csv(table, tmp_path / "results.csv")
    found = pyarrow.csv.read_csv(tmp_path / "results.csv").to_pylist()
    assert [json.loads(row["layers"]) for row in found] == [["q"], ["q", "v"], []]
    assert json.loads(found[2]["optim"]) == {"lr": 1e-4}
