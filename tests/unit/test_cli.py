"""The command line, as a person meets it: in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from one_by_one import typed
from test_report import make_run

from orpo_ray.cli import _KEEP_NOTHING, _interrupted, app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "train",
    "data",
    "evaluate",
    "score",
    "verdicts",
    "sweep",
    "pipeline",
    "report",
    "status",
    "export",
    "doctor",
    "demo",
)
HEAVY = {"torch", "ray", "transformers", "datasets", "deepspeed", "vllm", "numpy", "matplotlib", "rich"}


def run(*arguments: str, cwd: Path = ROOT, script: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", script] if script else ["-m", "orpo_ray.cli"]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy_and_is_complete(command: str) -> None:
    listing = (
        "import atexit, sys; from orpo_ray.cli import main;"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr)); main()"
    )
    done = run(command, "--help", script=listing)
    assert done.returncode == 0
    assert HEAVY & {module.partition(".")[0] for module in done.stderr.split()} == set()
    assert f"Usage: orpo-ray {command}" in done.stdout
    assert f"  orpo-ray {command} " in done.stdout.partition("Example")[2]
    for code in ("0    done", "2    your mistake", "1    anything else", "130  stopped by Ctrl-C"):
        assert code in done.stdout


def test_help_answers_within_half_a_second() -> None:
    seconds: list[float] = []
    while not seconds or (min(seconds) > 0.5 and len(seconds) < 8):  # a busy machine gets more tries
        start = time.perf_counter()
        assert run("train", "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 0.5, seconds


def test_a_bare_call_shows_every_command() -> None:
    done = run()
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, "orpo-ray 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see orpo-ray --help"),
        (["train"], "Missing argument 'CONFIG'; see orpo-ray train --help"),
        (["train", "x.yaml", "--lr", "1"],
         "No such option: --lr (Possible options: --help); see orpo-ray train --help"),
        (["train", "configs/toy-opro.yaml"],
         "configs/toy-opro.yaml: no such file; did you mean configs/toy-orpo.yaml?"),
        (["data", "toy-orpo.yaml"], "toy-orpo.yaml: no such file; did you mean configs/toy-orpo.yaml?"),
        (["train", "configs/toy-orpo.yaml", "optim.lrr=1"],
         "configs/toy-orpo.yaml: unknown key optim.lrr; did you mean optim.lr?"),
        (["data", "configs/toy-orpo.yaml", "optim.lr"],
         "override 'optim.lr': expected dotted.key=value, such as optim.lr=1e-5"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_plain_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"orpo-ray: {message}\n")


@pytest.mark.parametrize(
    ("job", "config", "override", "told"),
    [("train", "toy-orpo", "seed=-1", "seed: should be greater than or equal"),
     ("evaluate", "toy-winrate", "sampling.rounds=0", "sampling.rounds: should be greater than or equal"),
     ("evaluate", "toy-winrate", "scaling.generators=none", "scaling.generators: should be a whole number of at"),
     ("evaluate", "toy-winrate", "models.chosen=x", "models: the label chosen stands for the data set's own"),
     ("score", "score-toy", "scaling.scorers=0", "scaling.scorers: should be a whole number of at least 1"),
     ("sweep", "toy-sweep", "space={optim.lr: 'unifrom(0, 1)'}", "space: optim.lr: expected loguniform(low, high)"),
     ("sweep", "toy-sweep", "metric=eval_loss", "metric: eval_loss holds the objective's own weights"),
     ("pipeline", "toy-pipeline", "train.orpo.optim.lrr=1", "train.orpo: unknown key optim.lrr; did you mean"),
     pytest.param("evaluate", "toy-winrate", "models={a: ./nowhere}", "models.a: ./nowhere: no such folder",
                  marks=pytest.mark.long)],
)  # fmt: skip
def test_a_job_is_its_command(job: str, config: str, override: str, told: str) -> None:
    command = [sys.executable, f"jobs/{job}.py", f"configs/{config}.yaml", override]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


# A command that behaves as its argument says, to see how `main` ends; the commands themselves do real work.
PROBE = """
import sys, time
from orpo_ray.cli import app, main
from orpo_ray.errors import UserError

@app.command()
def probe(ending: str) -> None:
    if ending == "mistake":
        raise UserError("pairs.jsonl, line 3:\\n  no field 'chosen'")
    if ending == "bug":
        raise ZeroDivisionError("a bug")
    if ending == "wait":
        print("waiting", flush=True)
        time.sleep(60)

main(["probe", *sys.argv[1:]])
"""


def test_exit_codes() -> None:
    fine, mistake, bug = (run(ending, script=PROBE) for ending in ("fine", "mistake", "bug"))
    assert (fine.returncode, fine.stderr) == (0, "")
    assert (mistake.returncode, mistake.stderr) == (2, "orpo-ray: pairs.jsonl, line 3: no field 'chosen'\n")
    assert bug.returncode == 1
    assert bug.stderr.startswith("Traceback")
    assert bug.stderr.endswith("ZeroDivisionError: a bug\n")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(how: signal.Signals) -> None:
    command = [sys.executable, "-c", PROBE, "wait"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ("orpo-ray: interrupted; the same command continues where it stopped: orpo-ray probe wait\n")


def test_an_interruption_promises_no_more_than_the_command_keeps() -> None:
    assert _interrupted(["report", "runs/a"]) == "interrupted"
    assert _interrupted(["bench", "b.yaml"]) == "interrupted; the same command starts anew: orpo-ray bench b.yaml"
    assert _interrupted(["train", "a.yaml"]).endswith("continues where it stopped: orpo-ray train a.yaml")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands > _KEEP_NOTHING


def test_report_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    done = run("report", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.startswith("orpo-ray: ")
    assert done.stderr.count("\n") == 1


def test_a_page_of_several_runs(tmp_path: Path) -> None:
    """Its path is printed; what is no run, or twice there, is one line."""
    for name in ("a", "b"):
        make_run(tmp_path / name, steps=1)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.yaml").write_text("space: {}\n")
    (tmp_path / "empty").mkdir()
    fine, *mistakes = typed(
        ["report", "a", "b"], ["report", "a", "c"], ["report", "a", "empty"], ["report", "b", "a", "a/"],
        ["report", "a", "sweep"], ["report", "a", "b", "--out", "b"], ["report", "a", "--out", "x.html"], cwd=tmp_path,
    )  # fmt: skip
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "compare.html\n", "")
    told = [
        "c: no such folder",
        "empty: not a folder of a run with metrics (no metrics.jsonl)",
        "a: is there twice; a run is compared with others",
        "sweep: is the folder of another kind (sweep), and only training runs are compared; name those of its trials",
        "b: a page is written to a file that ends in .html",
        "--out: is for a page of several runs; that of one is in its folder, a",
    ]
    assert [(each.returncode, each.stderr) for each in mistakes] == [(2, f"orpo-ray: {line}\n") for line in told]


def test_damaged_input_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """Through the whole command: a bad record, a damaged container, a bomb of a configuration, a broken run folder."""
    (tmp_path / "pairs.jsonl").write_bytes(b'{"prompt": "a", "chosen": "b", "rejected": "\xff"}\n')
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bomb.yaml").write_text("a: &a [*a]\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b'{"step": 1}\n\x00\xff\n')
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    half, nested = make_run(tmp_path / "half"), make_run(tmp_path / "nested")
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 120, "eval_win_rate": 0.5}\n')
    (nested / "summary.json").write_text("[" * 100_000)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("[1]")
    toy = ["data", str(ROOT / "configs" / "toy-orpo.yaml"), "model.name_or_path=toy", f"storage.path={tmp_path}"]
    cases = [
        ([*toy, "data.train=pairs.jsonl"], "pairs.jsonl:1: invalid UTF-8"),
        ([*toy, "data.train=pairs.parquet"], "pairs.parquet: unreadable file: not a whole Parquet file"),
        ([*toy, "data.train=http://me:secret@127.0.0.1:9/x"], "http://me:***@127.0.0.1:9/x: cannot be read"),
        (["train", "bomb.yaml"], "bomb.yaml, line 1: not valid YAML: an alias stands for what holds it"),
        (["report", "run"], "metrics.jsonl: cannot be read"),
        (["report", "half"], "half/metrics.jsonl, line 126: has no eval_win_rate_low"),
        (["status", "half"], "half/metrics.jsonl, line 126: has no eval_win_rate_low"),
        (["report", "nested"], "nested/summary.json: not valid JSON: "),
        ([*toy, "model.name_or_path=model"], "model/config.json: expected a JSON object, found a list"),
        (["doctor", "--toy"], "doctor: --toy, --seconds and --out say how --gpu is done"),
        (["doctor", "--gpu", "run.yaml"], "doctor: --gpu looks at no configuration"),
        (["evaluate", str(ROOT / "configs" / "toy-winrate.yaml"), "models={a: ./nowhere}"],
         "models.a: ./nowhere: no such folder"),
    ]  # fmt: skip
    for done, (_, told) in zip(typed(*(arguments for arguments, _ in cases), cwd=tmp_path), cases, strict=True):
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("orpo-ray: ")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr
