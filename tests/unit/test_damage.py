"""Damage to what a run, a sweep, an evaluation or a model leaves: one plain line that names it, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import assert_one_line
from test_checkpoints import engine, saved
from test_report import make_run
from test_sweep_results import STEPS, write_run
from test_sweep_results import config as sweep_config
from test_training_pieces import config

from orpo_ray.data.cache import MANIFEST, read_or_build
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import read_winrates
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.report import write_report
from orpo_ray.status.read import read_status
from orpo_ray.storage.checkpoint_files import sum_up
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.driver_lock import LOCK, only_driver
from orpo_ray.storage.mirror import Mirror
from orpo_ray.storage.run_folder import RunFolder, join_files, kept_model
from orpo_ray.terminal import Console
from orpo_ray.training.loop import State
from orpo_ray.training.progress import _new_lines
from orpo_ray.training.saving import choose, load
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger, left_by
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import write_best

ENDLESS = "[" * 100_000
NO_OBJECTS = ["", "[1]", "3", ENDLESS, '{"a": ' * 100_000, "\udcff"]


def write(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def refused(work: Callable[[], object], *names: str) -> str:
    """What is told; every file is as before, but for nothing."""
    with pytest.raises(UserError) as caught:
        work()
    assert_one_line(caught.value, *names)
    return str(caught.value)


# A run's metrics -----------------------------------------------------------------------------------------------------

LINES = {
    '{"step": 121, "eval_win_rate": 0.5}': "has no eval_win_rate_low",
    '{"step": 121, "eval_win_rate": 0.5, "eval_win_rate_low": 0.4}': "has no eval_win_rate_high",
    '{"step": 121, "eval_win_rate_low": 0.4, "eval_win_rate_high": 0.6}': "has no eval_win_rate",
    '{"step": 121, "eval_win_rate": "0.5", "eval_win_rate_low": 0.4, "eval_win_rate_high": 0.6}':
        "eval_win_rate should be a number, and is text",
    '{"step": 121, "eval_win_rate": 0.5, "eval_win_rate_low": [], "eval_win_rate_high": 0.6}':
        "eval_win_rate_low should be a number, and is a list",
    '{"step": 121, "eval_win_rate": 0.5, "eval_win_rate_low": NaN, "eval_win_rate_high": 0.6}':
        "eval_win_rate_low is not finite",
    '{"step": 121, "eval_win_rate": null, "eval_win_rate_low": 0.4, "eval_win_rate_high": 0.6}':
        "eval_win_rate should be a number, and is null",
    '{"step": 121, "loss": null, "skipped": 3}': "skipped should be a list, and is a whole number",
    '{"step": "abc"}': "has no step number",
    '{"step": true}': "has no step number",
    '{"step": -1}': "has no step number",
    '{"loss": 1}': "has no step number",
    "[1]": "expected a JSON object, found a list",
    ENDLESS: "not valid JSON",
}  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_a_line_of_metrics(line: str, tmp_path: Path) -> None:
    """For a report, a status, and a run that goes on, which would drop what it repeats."""
    folder = make_run(tmp_path / "run", finished=False)
    metrics = folder / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write(line + "\n")
    before = metrics.read_bytes()
    where = f"{metrics}, line {before.count(bytes([10]))}: {LINES[line]}"
    run = RunFolder(folder)
    for work in (lambda: write_report(folder), lambda: read_status(folder), lambda: run.forget_after(40),
                 run.last_steps):  # fmt: skip
        assert refused(work).startswith(where)
    assert metrics.read_bytes() == before


def test_a_win_rate_that_failed_is_no_half_of_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    whole = {"eval_win_rate": 0.5, "eval_win_rate_low": 0.4, "eval_win_rate_high": 1}
    failed = {"eval_win_rate": None, "eval_win_rate_failure": "no room"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": 120, **line}) + "\n" for line in (failed, whole, failed))
    assert "Win-rate" in write_report(folder).read_text()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    write(folder / "metrics.jsonl", '{"step": 1}\n\udcff\n')
    assert "metrics.jsonl: cannot be read: not UTF-8 text" in refused(lambda: RunFolder(folder).forget_after(1))


def test_the_bar_passes_over_what_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(['{"step": "x"}', "[1]", '{"a": [' * 99_999 + "}", '{"step": 1}', '{"event": "e"}', ""]))
    assert _new_lines(file, 0)[0] == [{"step": 1}, {"event": "e"}]


# A run's small files -------------------------------------------------------------------------------------------------


STEPS_OF_MODELS = [*NO_OBJECTS, "{}", '{"step": "3"}', '{"step": null}', '{"step": 3.5}', '{"step": 3, "why": 1}']


@pytest.mark.parametrize("name", ["model", "model-last"])
@pytest.mark.parametrize("text", STEPS_OF_MODELS)
def test_the_step_of_a_kept_model(text: str, name: str, tmp_path: Path) -> None:
    """Were it taken for missing, the best model would be replaced by that of now."""
    folder = RunFolder(tmp_path / "unit")
    folder.open_for(config())
    model = folder.path / name
    model.mkdir()
    assert kept_model(model) is None
    write(model / "training_step.json", text)
    told = refused(lambda: folder.open_for(config()), f"{model}/training_step.json")
    assert told.endswith(f"restore it, or remove {model} to have another model kept")
    assert model.is_dir()


@pytest.mark.parametrize("text", [*NO_OBJECTS, "{}", '{"step": 8}', '{"step": "8", "location": "x"}'])
def test_the_note_of_the_last_checkpoint(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "unit")
    folder.open_for(config())
    write(folder.path / "last_checkpoint.json", text)
    refused(lambda: folder.open_for(config()), "last_checkpoint.json: was changed by something else; remove it")


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_the_summary(text: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write(folder / "summary.json", text)
    for work in (lambda: write_report(folder), lambda: read_status(folder)):
        refused(work, f"{folder}/summary.json: ")


def test_events(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    write(folder / "events.jsonl", f'{{"event": 3}}\n{ENDLESS}\n')
    for work in (lambda: write_report(folder), lambda: read_status(folder)):
        refused(work, f"{folder}/events.jsonl, line 2: not valid JSON")


REWARDS = {"chosen": [1.0, 2.0], "rejected": [0.0, 1.0], "chosen_tokens": [3, 4], "rejected_tokens": [5, 6]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chosen": ["a", "b"]}, "cannot be read"),
        ({"chosen": [1.0, float("nan")]}, "holds a reward that is not finite"),
        ({"chosen": [1.0, None]}, "holds a reward that is not finite"),
        ({"rejected": [1e308, -1e308]}, "holds a reward that is not finite"),
        ({"chosen_tokens": [1, None]}, "a row has no number"),
        (None, "cannot be read"),
    ],
)
def test_the_scores_of_a_reward_model(change: dict[str, Any] | None, told: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", objective="reward")
    file = folder / "eval_scores.parquet"
    pq.write_table(pa.table({**REWARDS, **(change or {})}), file)
    if change is None:
        file.write_bytes(file.read_bytes()[:-9])
    assert told in refused(lambda: write_report(folder), str(file))


def test_scores_of_no_pair(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", objective="reward")
    pq.write_table(pa.table({name: pa.array([], pa.float64()) for name in REWARDS}), folder / "eval_scores.parquet")
    assert "Calibration" not in write_report(folder).read_text()


# Checkpoints ---------------------------------------------------------------------------------------------------------

MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step should be a whole number, and is text": lambda m: m.update(step="abc"),
    "step should be a whole number, and is true or false": lambda m: m.update(step=True),
    "step is 1, in the folder of step 2": lambda m: m.update(step=1),
    "has no step": lambda m: m.pop("step"),
    "state should be an object, and is a list": lambda m: m.update(state=[]),
    "updates should be a whole number, and is null": lambda m: m.update(updates=None),
    "config should be text, and is a whole number": lambda m: m.update(config=3),
    "data should be text, and is a list": lambda m: m.update(data=[]),
    "cost should be a number or null, and is text": lambda m: m.update(cost="low"),
    "files should be an object, and is a list": lambda m: m.update(files=[]),
    "'../other' is no file of a checkpoint": lambda m: m["files"].update({"../other": {"size": 1, "sha256": ""}}),
    "should have a size and a sha256": lambda m: m["files"].update({"rank-00000.safetensors": [1, ""]}),
    "size should be a whole number, and is text": lambda m: m["files"]["rank-00000.safetensors"].update(size="9"),
    "has no sha256": lambda m: m["files"]["rank-00000.safetensors"].pop("sha256"),
    "format should be a whole number, and is text": lambda m: m.update(format="1"),
    "weights should be an object, and is text": lambda m: m.update(weights="a"),
    "weights: a should be text, and is a list": lambda m: m.update(weights={"a": []}),
}  # fmt: skip


def damage_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "manifest.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


@pytest.mark.parametrize("told", [*MANIFESTS, "expected a JSON object", "not valid JSON"])
def test_a_manifest_that_says_something_else_is_passed_over(told: str, tmp_path: Path) -> None:
    """In favour of the checkpoint before; where there is none, the run stops. Both are there afterwards."""
    run = make_run(tmp_path / "run", finished=False, storage={"path": str(tmp_path)})
    trained, events = engine(), []
    checkpoints = saved(run / "checkpoints", trained, [1, 2])
    newest = run / "checkpoints" / "step-00000002"
    if told in MANIFESTS:
        damage_manifest(newest, MANIFESTS[told])
    else:
        (newest / "manifest.json").write_text("[1]" if told.startswith("expected") else ENDLESS)
    assert read_status(run).facts["checkpoint_step"] == 1
    chosen = choose(checkpoints, trained, events.append)
    assert chosen is not None and chosen.step == 1
    assert len(events) == 1 and events[0].startswith("the checkpoint of step 2 is passed over: manifest.json: ")
    assert told in events[0]
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    refused(lambda: choose(checkpoints, trained, events.append), "none of the checkpoints is whole")
    assert (newest / "rank-00000.safetensors").is_file()


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "is cut short": lambda content: content[:-4],
    "is cut short ": lambda content: content[:5],
    "is cut short  ": lambda content: (2**60).to_bytes(8, "little") + content[8:],
    "not valid JSON": lambda content: content[:8] + b"[" * (len(content) - 8),
    "expected a JSON object": lambda content: (2).to_bytes(8, "little") + b"[]" + content[10:],
    "is no vector of float32": lambda content: content.replace(b'"F32"', b'"I32"'),
    "is no vector of float32 ": lambda content: content.replace(b'"data_offsets": [0,', b'"data_offsets": [8,', 1),
    "does not hold elements": lambda content: content.replace(b"/exp_avg_sq", b"/exp_avg_xq"),
    "invalid literal": lambda content: content.replace(b"@0/", b"@x/"),
}


@pytest.mark.parametrize("told", FORGED)
def test_a_file_of_a_checkpoint_whose_sum_fits(told: str, tmp_path: Path) -> None:
    """Whoever can write the file can write its sum."""
    trained = engine()
    checkpoints = saved(tmp_path, trained, [1])
    file = tmp_path / "step-00000001" / "rank-00000.safetensors"
    file.write_bytes(FORGED[told](file.read_bytes()))
    with file.open("rb") as opened:
        total = sum_up(opened)._asdict()
    damage_manifest(file.parent, lambda manifest: manifest["files"].update({file.name: total}))
    manifest = choose(checkpoints, trained, pytest.fail)
    assert manifest is not None
    assert told.strip() in refused(lambda: load(trained, checkpoints, manifest), "step-00000001")


@pytest.mark.parametrize(
    ("change", "told"),
    [({"step": "3"}, "step should be a whole number, and is text"), ({"best_step": 1.5}, "best_step should be a whole"),
     ({"best_eval_loss": "x"}, "best_eval_loss should be a number or null"), ({"other": 1}, "'other' is unknown")],
)  # fmt: skip
def test_the_state_of_the_loop(change: dict[str, Any], told: str) -> None:
    state = {"step": 3, "best_step": None, "best_eval_loss": 1, "skipped": 0}
    assert State.from_json(state) == State(3, None, 1, 0, "eval_loss")
    with pytest.raises(ValueError, match=told):
        State.from_json({**state, **change})


# Evaluations and sweeps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_win_rates(text: str, tmp_path: Path) -> None:
    write(tmp_path / "winrates.json", text)
    refused(lambda: read_winrates(EvaluationFolder(tmp_path)), f"{tmp_path}/winrates.json: ")


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """Two trials that have finished."""
    own = sweep_config(tmp_path)
    folder = SweepFolder(own)
    folder.open_for(own)
    for index in range(2):
        write_run(folder.trial(index).path, searcher_of(own).settings(index, []))
    return folder


TRIALS = {
    "metrics.jsonl": ['{"step": "abc"}\n', "[]\n", f"{ENDLESS}\n", '{"step": 80, "eval_reward_accuracy": "0.9"}\n',
                      '{"step": 80, "eval_reward_accuracy": 1e999}\n'],
    "failed.json": [*NO_OBJECTS, "{}", '{"reason": 3}', '{"reason": "x", "diverged": 1}'],
    "summary.json": NO_OBJECTS,
    "start.json": [*NO_OBJECTS, "{}", '{"seconds": "3"}', '{"seconds": NaN}', '{"seconds": 1e999}'],
}  # fmt: skip


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in TRIALS.items() for text in texts])
def test_what_a_trial_has_left(file: str, text: str, sweep: SweepFolder, tmp_path: Path) -> None:
    own = sweep_config(tmp_path)
    write(sweep.trial(1).path / file, text)
    ledger = Ledger(own, sweep, STEPS)
    ledger.begin(searcher_of(own).settings(0, []))
    assert sweep.begun == [0, 1]
    for work in (lambda: left_by(sweep, 1, own), lambda: ledger.begin(searcher_of(own).settings(1, []))):
        refused(work, f"{sweep.trial(1).path}/{file}")


@pytest.mark.parametrize("text", [*NO_OBJECTS, "{}", '{"lag": "1", "seconds": 1, "finished": ""}'])
def test_the_summary_of_a_sweep(text: str, sweep: SweepFolder) -> None:
    write(sweep.summary, text)
    for work in (lambda: sweep.held, lambda: read_status(sweep.path)):
        refused(work, f"{sweep.summary}: ")


def test_the_configuration_of_a_sweep_and_of_its_winner(sweep: SweepFolder, tmp_path: Path) -> None:
    own = sweep_config(tmp_path)
    ledger = Ledger(own, sweep, STEPS)
    winner = ledger.begin(searcher_of(own).settings(0, []))
    for text in ("name: x", "scaling: 3", "scaling: {cpus_per_worker: []}", "- 1"):
        write(sweep.trial(0).config, text)
        refused(lambda: write_best(sweep, own, winner), str(sweep.trial(0).config))
    assert not sweep.best.exists()
    for text in ("- 1", "a: [", "a: &a [*a]"):
        write(sweep.config, text)
        refused(lambda: sweep.open_for(own), str(sweep.config))


# What the program keeps for itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [*NO_OBJECTS, "{}", '{"sizes": [], "account": {}, "digest": ""}', '{"sizes": {}, "account": 3, "digest": ""}'],
)
def test_tokens_whose_manifest_is_damaged_are_made_again(text: str, tmp_path: Path) -> None:
    from test_data_cache import WRITTEN, as_lists, fill

    sound = read_or_build(tmp_path, "key", fill)
    write(tmp_path / "key" / MANIFEST, text)
    again = read_or_build(tmp_path, "key", fill)
    assert as_lists(again) == WRITTEN
    assert again.account == sound.account


@pytest.mark.parametrize("account", ["dropped", "kept", "quarantined", "uncut"])
def test_an_account_that_is_none(account: str, tmp_path: Path) -> None:
    from test_data_cache import fill

    sound = read_or_build(tmp_path, "key", fill).account
    file = tmp_path / "key" / MANIFEST
    for value in ("x", {"a": "b"}, None):
        found = json.loads(file.read_text())
        found["account"][account] = value
        file.write_text(json.dumps(found))
        assert read_or_build(tmp_path, "key", fill).account == sound


@pytest.mark.parametrize("text", [*NO_OBJECTS, "{}", '{"session": 3}'])
def test_the_name_of_a_copy(text: str, tmp_path: Path) -> None:
    """On this machine, and on the storage."""
    (tmp_path / "run").mkdir()
    mirror = Mirror(tmp_path / "run", str(tmp_path / "copy"))
    mirror.begin()
    for place in ("run", "copy"):
        file = tmp_path / place / "mirror.json"
        sound = file.read_text()
        write(file, text)
        refused(mirror.update, f"{file}: ")
        file.write_text(sound)
    mirror.update()


@pytest.mark.parametrize("text", [*NO_OBJECTS, "{}", '{"pid": "../../x"}', '{"pid": 1}'])
def test_a_lock_that_nobody_wrote_is_a_dead_drivers(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orpo_ray.storage import driver_lock

    monkeypatch.setattr(driver_lock, "_STILL", 0.0)
    monkeypatch.setattr(driver_lock, "_LOOK", 0.01)
    write(tmp_path / LOCK, text)
    with only_driver(tmp_path, Console(quiet=True)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"]


def test_quarantined_records_of_several_sources_are_put_together(tmp_path: Path) -> None:
    parts = [tmp_path / name for name in "ab"]
    for part in parts:
        part.write_text(f"{part.name}\n")
    join_files(tmp_path / "all", parts)
    assert (tmp_path / "all").read_text() == "a\nb\n"


def test_a_manifest_nested_without_end_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "manifest.json").write_text(ENDLESS)
    assert Checkpoints(str(tmp_path)).finished() == []
