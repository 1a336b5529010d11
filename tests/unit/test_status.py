"""`orpo-ray status`: what it says of folders such as real runs leave, in every state."""

from __future__ import annotations

import io
import json
import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_run import change, make_evaluation, numbers
from one_by_one import typed
from test_report import make_run
from test_sweep_results import STEPS, config, write_run

from orpo_ray.errors import UserError
from orpo_ray.evaluation.store import RESPONSES, REWARDS, Pieces
from orpo_ray.report.runs import read_run
from orpo_ray.status.read import as_json, print_status, read_status
from orpo_ray.status.status import duration
from orpo_ray.storage.checkpoint_files import FileSum
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.driver_lock import LOCK, only_driver
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import summary, write_results, write_summary


def told(folder: Path) -> str:
    out = io.StringIO()
    print_status(read_status(folder), Console(file=out, width=300))
    return out.getvalue()


def driven(folder: Path) -> AbstractContextManager[None]:
    """While the body runs, a driver is at work on it: this process."""
    return only_driver(folder, Console(file=io.StringIO()))


def driven_elsewhere(folder: Path) -> None:
    """A driver is at work on it, or was, that cannot be looked up from here."""
    lock = json.dumps({"host": "another", "pid": 1, "started": "1", "pids_of": "a boot of another machine", "id": ""})
    (folder / LOCK).write_text(lock)


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds, time.time() - seconds))


def begun(tmp_path: Path) -> Path:
    """A run of 120 steps in 2 epochs that came to step 45; its checkpoint of step 60 was never finished."""
    folder = make_run(
        tmp_path / "runs" / "half", steps=45, finished=False, storage={"path": str(tmp_path / "runs")},
        train={"max_steps": None, "epochs": 2, "global_batch_size": 32},
    )  # fmt: skip
    checkpoints = Checkpoints(str(folder / "checkpoints"))
    for step in (30, 40):
        checkpoints.open(step)
        checkpoints.commit(Manifest(step, {}, step, "", "", None, {"rank-0": FileSum(3 * 2**20, "")}))
    checkpoints.open(45)
    RunFolder(folder).note("a worker was lost")
    return folder


class TestTraining:
    def test_one_that_runs(self, tmp_path: Path) -> None:
        folder = begun(tmp_path)
        with driven(folder):
            status, text = read_status(folder), told(folder)
        assert (status.kind, status.state, status.driver) == ("training run", "running", True)
        assert (status.facts["step"], status.facts["total_steps"]) == (45, 120), "60 steps in an epoch, two epochs"
        assert status.facts["checkpoint_step"] == 40, "that of step 45 has no manifest"
        assert status.facts["evaluation"]["step"] == 30
        rate = status.facts["pairs_per_second"]
        assert 70 < rate < 90
        assert status.facts["seconds_left"] == pytest.approx(75 * 32 / rate)
        assert "state      running (last sign" in text
        assert "step       45 of 120, epoch 0.75" in text
        assert "margin +" in text and "held out   step 30: loss 0.8875" in text
        assert "step 40 (3 MiB)" in text
        assert "  a worker was lost" in text and re.search(r" pairs/s, \d+ s left\n", text)
        assert f"next       orpo-ray report {folder}\n" in text

    def test_one_that_was_interrupted_is_continued_by_the_command_it_names(self, tmp_path: Path) -> None:
        folder = begun(tmp_path)
        age(folder / "metrics.jsonl", 7300)
        status = read_status(folder)
        assert (status.state, status.driver) == ("interrupted", False)
        assert status.next == f"orpo-ray train {folder}/config.yaml"
        assert "state      interrupted (last sign 2 h 1 min ago)" in told(folder)
        assert re.search(r"speed +[\d.]+ pairs/s, \d+ s of work left\n", told(folder)), "nobody is at it"

    def test_the_lock_says_at_once_whether_it_goes_on(self, tmp_path: Path) -> None:
        folder = begun(tmp_path)
        with driven(folder):
            age(folder / "metrics.jsonl", 7300)  # an evaluation that takes hours
            assert read_status(folder).state == "running"
            lock = json.loads((folder / LOCK).read_text())
        assert read_status(folder).state == "interrupted", "its driver has ended"
        age(folder / "metrics.jsonl", 0)
        (folder / LOCK).write_text(json.dumps({**lock, "started": "1"}))
        assert read_status(folder).state == "interrupted", "its driver was killed a moment ago"

    def test_where_the_lock_cannot_be_asked_it_goes_on_as_it_seems(self, tmp_path: Path) -> None:
        folder = begun(tmp_path)
        driven_elsewhere(folder)
        assert (read_status(folder).state, read_status(folder).driver) == ("running", None)
        assert "state      running, as it seems (last sign" in told(folder)
        age(folder / "metrics.jsonl", 7300)
        assert "state      not finished, and silent: interrupted, or busy" in told(folder)
        assert json.loads(as_json(read_status(folder)))["state"] == "silent"

    @pytest.mark.parametrize("moved", [True, False])
    def test_a_copy_has_no_lock_to_be_asked(self, tmp_path: Path, moved: bool) -> None:
        folder = make_run(
            tmp_path / "run", steps=45, finished=False,
            storage={"path": str(tmp_path), "mirror": str(tmp_path / "copies")},
        )  # fmt: skip
        if moved:
            folder = folder.rename(tmp_path / "fetched")
        assert read_status(folder).state == ("running" if moved else "interrupted")

    def test_remarks_do_not_crowd_out_what_happened(self, tmp_path: Path) -> None:
        folder = begun(tmp_path)
        for number in range(6):
            RunFolder(folder).note_once(f"column {number} is not read")
        text = told(folder)
        assert "  a worker was lost" in text and "is not read" not in text
        assert f"remarks    6, in {folder}/events.jsonl\n" in text
        assert len(read_run(folder).events) == 7, "the page has them all"

    def test_a_folder_that_was_moved_is_named_in_that_command(self, tmp_path: Path) -> None:
        folder = begun(tmp_path).rename(tmp_path / "else where")
        age(folder / "metrics.jsonl", 7300)
        assert read_status(folder).next == (
            f"orpo-ray train '{folder}/config.yaml' 'name=else where' storage.path={tmp_path}"
        )

    def test_secrets_that_are_masked_cannot_be_given_again_by_it(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", finished=False, data={"train": "s3://me:***@bucket/pairs"})
        age(folder / "metrics.jsonl", 7300)
        assert read_status(folder).next.startswith("the orpo-ray train that it was started with")

    def test_max_steps_decides_whatever_epochs_says(self, tmp_path: Path) -> None:
        for limit in (50, 500):
            train = {"max_steps": limit, "epochs": 2, "global_batch_size": 32}
            folder = make_run(tmp_path / f"run-{limit}", steps=45, finished=False, train=train)
            assert read_status(folder).facts["total_steps"] == limit

    def test_slow_steps_explain_a_silence(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "slow", finished=False, train={"global_batch_size": 80 * 60, "max_steps": 120})
        driven_elsewhere(folder)
        age(folder / "metrics.jsonl", 300)  # a step takes a minute
        assert read_status(folder).state == "running"

    def test_one_that_has_finished(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "done")
        text = told(folder)
        assert "state      finished" in text and "step       120 of 120" in text
        assert "model      none yet" in text
        for name, said in (("model", '{"step": 60}'), ("model-last", '{"step": 120, "why": "the last evaluated"}')):
            (folder / name).mkdir()
            (folder / name / "training_step.json").write_text(said)
        assert "model      model/: step 60, lowest eval loss; model-last/: step 120, the last evaluated" in told(folder)
        assert read_status(folder).facts["models"] == {"model": 60, "model-last": 120}
        assert f"open {folder}/report.html; the model is in {folder}/model" in text
        assert " left" not in text

    def test_one_without_metrics_and_one_whose_loss_is_not_finite(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", finished=False)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 121, "loss": null, "pairs_per_second": "x"}\n{"step": 12')
        assert "loss       not finite" in told(folder)
        (folder / "metrics.jsonl").unlink()
        assert "step       none yet: stopped before its first step" in told(folder)
        with driven(folder):
            assert "step       none yet: starting workers\n" in told(folder)
        driven_elsewhere(folder)
        assert "step       none yet: starting workers, or stopped\n" in told(folder)

    def test_json_is_the_numbers_on_one_line(self, tmp_path: Path) -> None:
        line = as_json(read_status(begun(tmp_path)))
        assert "\n" not in line
        found = json.loads(line)
        assert (found["kind"], found["step"], found["total_steps"]) == ("training run", 45, 120)


class TestEvaluation:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """60 prompts, so two blocks; three models, three rounds; nothing finished."""
        folder = make_evaluation(tmp_path / "compared")
        (folder / "winrates.json").rename(tmp_path / "winrates.json")
        mapping = yaml.safe_load((folder / "config.yaml").read_text())
        mapping |= {"sampling": {"rounds": 3}, "reward_models": {"truth": "toy"}, "storage": {"path": str(tmp_path)}}
        (folder / "config.yaml").write_text(yaml.safe_dump(mapping))
        return folder

    def write(self, folder: Path, block: int, prompts: int, key: str = "a" * 12) -> None:
        for label in ("sft", "orpo", "dpo"):
            rows = [{"prompt": p, "round": r, "text": "x", "tokens": 1} for p in range(prompts) for r in range(3)]
            Pieces(folder / "responses", label, key, RESPONSES).write(block, rows)

    def test_responses_are_counted(self, folder: Path) -> None:
        self.write(folder, 0, 32)
        with driven(folder):
            text = told(folder)
        assert "responses  288 of 540" in text and "judged     0 of 2 blocks" in text
        assert f"next       orpo-ray status {folder}" in text
        assert read_status(folder).state == "interrupted"
        assert read_status(folder).next == f"orpo-ray evaluate {folder}/config.yaml"

    def test_it_is_finished_with_its_last_piece_and_its_result(self, folder: Path) -> None:
        self.write(folder, 0, 32, key="b" * 12)  # asked with other settings before
        for old in folder.glob("responses/*"):
            age(old, 100)
        self.write(folder, 0, 32)
        self.write(folder, 1, 28)
        judged = [Pieces(folder / "rewards", f"truth-{model}", "c" * 12, REWARDS) for model in ("sft", "orpo", "dpo")]
        for pieces in judged:
            pieces.write(0, [{"prompt": 0, "model": "sft", "round": 0, "reward": 1.0}])
        (folder.parent / "winrates.json").rename(folder / "winrates.json")
        assert read_status(folder).facts["responses"] == 540
        assert read_status(folder).state == "interrupted", "one block has no rewards"
        for pieces in judged:
            pieces.write(1, [])
        assert read_status(folder).state == "finished"

    def test_one_whose_pieces_were_removed_stays_finished(self, folder: Path) -> None:
        assert read_status(folder).state == "interrupted"
        (folder.parent / "winrates.json").rename(folder / "winrates.json")
        assert read_status(folder).state == "finished"

    def test_it_names_who_wins_by_each_judge(self, folder: Path) -> None:
        (folder.parent / "winrates.json").rename(folder / "winrates.json")
        change(folder, lambda found: found["ratings"]["truth"].reverse())
        first, last = (found[0]["model"] for found in map(numbers(folder)["ratings"].get, ("opt-1.3b", "truth")))
        assert first == "orpo" != last

        def tell_apart(*judges: str) -> None:
            def edit(found: dict) -> None:
                for pair in found["pairs"]:
                    pair["p_holm"] = 0.01 if pair["reward_model"] in judges else 0.5

            change(folder, edit)

        number, other = r"\d+\.\d%", r"\w+"
        won = rf"{last} by truth \({number} over {other}\)", rf"orpo by opt-1.3b \({number} over {other}\)"
        alike = [
            rf"not told apart by {judge}: {best} and {other} \({number} for {best}\)"
            for judge, best in (("truth", last), ("opt-1.3b", "orpo"))
        ]
        for apart, label, said in (
            (("truth", "opt-1.3b"), "winner    ", won),
            (("opt-1.3b",), "winner    ", (alike[0], won[1])),
            ((), "no winner ", alike),
        ):
            tell_apart(*apart)
            status = read_status(folder)
            assert status.facts["winners"] == {
                judge: best if judge in apart else None for judge, best in (("truth", last), ("opt-1.3b", "orpo"))
            }
            assert re.search(rf"^  {label} {said[0]}; {said[1]}$", told(folder), re.M)
            assert re.fullmatch(rf"{said[0]}; {said[1]}", status.brief)
        change(folder, lambda found: found.update(pairs=[], ratings={}))
        assert "winner" not in told(folder), "one model alone"


class TestSweep:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Nine trials: five begun; the third failed, the fifth has begun."""
        own = config(tmp_path)
        folder = SweepFolder(own)
        folder.open_for(own)
        searcher, ledger = searcher_of(own), Ledger(own, folder, STEPS)
        for index in range(5):
            settings = searcher.settings(index, [])
            if index == 2:
                folder.fail(index, "out of memory")
            else:
                write_run(folder.trial(index).path, settings, until=STEPS if index < 4 else 0)
            ledger.begin(settings)
        write_results(folder, ledger)
        found = summary(own, ledger, STEPS, None, [])
        write_summary(folder, found | {"lag": 1, "seconds": 400.0, "finished": ""})
        return folder.path

    def test_one_that_runs(self, folder: Path) -> None:
        with driven(folder):
            status, text = read_status(folder), told(folder)
        assert status.state == "running"
        done = [status.facts[name] for name in ("finished", "stopped", "failed", "unfinished")]
        assert sum(done) == 5 and done[2:] == [1, 1]
        assert status.facts["seconds_left"] == pytest.approx(400 / 4 * 5)
        assert f"trials     4 of 9 done: {done[0]} finished, {done[1]} stopped early, 1 failed" in text
        assert "at work    004 (step 1 of 72)" in text
        assert "best so far trial 00" in text and "eval_reward_accuracy 0." in text and "optim.lr=" in text
        assert "trial 002  out of memory" in text
        assert "left       about 8 min 20 s" in text

    def test_one_that_was_interrupted_or_has_finished(self, folder: Path) -> None:
        for file in folder.rglob("*"):
            age(file, 7300)
        assert read_status(folder).next == f"orpo-ray sweep {folder}/config.yaml"
        text = told(folder)
        assert "left       about 8 min 20 s of work, once it goes on" in text and "at work" not in text
        assert "begun      004 (step 1 of 72)" in text
        found = json.loads((folder / "sweep.json").read_text())
        (folder / "sweep.json").write_text(json.dumps({**found, "winner": 1, "finished": "yes"}))
        status = read_status(folder)
        assert (status.state, status.next) == ("finished", f"orpo-ray train {folder}/best.yaml")
        assert status.facts["best"]["trial"] == 1
        assert "winner     trial 001: eval_reward_accuracy 0." in told(folder)

    def test_one_whose_first_trial_is_at_work(self, folder: Path) -> None:
        (folder / "sweep.json").unlink()
        assert "trials     0 of 9 done" in told(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such folder"),
        ({}, r"not the folder of a run, an evaluation or a sweep \(no config.yaml\)"),
        ({"config.yaml": "name: [x"}, "config.yaml, line 1: not valid YAML"),
        ({"config.yaml": "name: x"}, "config.yaml: not the configuration of a run"),
        ({"config.yaml": "model: {}", "metrics.jsonl": "{}\n"}, "metrics.jsonl, line 1: has no step number"),
        ({"config.yaml": "space: {}", "sweep.json": "{}"}, "sweep.json: name: Field required"),
    ],
)
def test_what_is_no_such_folder_is_told(tmp_path: Path, content: dict[str, str] | None, message: str) -> None:
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_status(folder)


def test_strange_values_in_a_folder_are_not_known(tmp_path: Path) -> None:
    for number, text in enumerate(("models: 3", "models: {a: b}\nsampling: {rounds: many}", "space: 1\ntrials: x",
                                   "model: 1\nstorage: {checkpoints: 'nowhere://x'}")):  # fmt: skip
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
        (folder / "prompts.parquet").write_bytes(b"PAR1")
        (folder / "metrics.jsonl").write_text('{"step": 3, "epoch": "x", "loss": [], "pairs_per_second": 0}\n')
        assert "next  " in told(folder)


def test_through_the_command(tmp_path: Path) -> None:
    """Of a folder of runs a line for each, whatever is wrong with one of them."""
    folder = make_run(tmp_path / "runs" / "run")
    make_evaluation(tmp_path / "runs" / "compared")
    half = begun(tmp_path)
    (tmp_path / "runs" / ".cache").mkdir()
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "config.yaml").write_text("name: x")
    with driven(half):
        none, done, runs, lines = typed(
            ["status", str(tmp_path)], ["status", str(folder), "--json"], ["status", str(tmp_path / "runs")],
            ["status", str(tmp_path / "runs"), "--json"], cwd=tmp_path,
        )  # fmt: skip
    assert (none.returncode, none.stdout, none.stderr.count("\n")) == (2, "", 1)
    assert done.returncode == runs.returncode == 0
    assert json.loads(done.stdout)["state"] == "finished"
    compared, interrupted, finished, odd = runs.stdout.splitlines()
    ahead = r"(orpo|not told apart) by truth.*%.*; .*"
    assert re.fullmatch(rf"compared  evaluation    finished  {ahead} \(last sign .*\)", compared)
    assert re.fullmatch(r"half      training run  running   step 45 of 120, eval loss 0\.8875 \(last .*\)", interrupted)
    assert re.fullmatch(r"run       training run  finished  step 120 of 120, eval loss .*", finished)
    assert odd == f"{tmp_path}/runs/odd/config.yaml: not the configuration of a run, an evaluation or a sweep"
    found = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [each.get("state") for each in found] == ["finished", "running", None, "finished"]
    assert found[2] == {"error": odd}


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 61, 3600, 7300, 90000)] == [
        "0 s", "1 min", "1 min 1 s", "1 h", "2 h 1 min", "1 d 1 h",
    ]  # fmt: skip


def test_no_parquet_is_written_twice(tmp_path: Path) -> None:
    """A piece cut short by a full disk counts as none."""
    folder = tmp_path / "responses" / f"sft-{'a' * 12}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"prompt": [1, 2]}), folder / "00000.parquet")
    (folder / "00001.parquet").write_bytes((folder / "00000.parquet").read_bytes()[:40])
    (tmp_path / "config.yaml").write_text("models: {sft: x}\n")
    assert read_status(tmp_path).facts["responses"] == 2
