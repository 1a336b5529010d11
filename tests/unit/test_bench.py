"""A benchmark as a whole: its configuration, its processes, its statistics, its tables."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from pydantic import TypeAdapter

from orpo_ray.bench import table
from orpo_ray.bench.contestant_process import ContestantProcess, Lost
from orpo_ray.bench.process import StepReport
from orpo_ray.bench.results import Record, Work, statistics_of
from orpo_ray.bench.stages.run import result as stage_result
from orpo_ray.bench.stages.way import Way
from orpo_ray.bench.task import Task
from orpo_ray.cli import main
from orpo_ray.config import BenchmarkConfig, EvaluationBenchmarkConfig, load_as, load_benchmark, parse_as
from orpo_ray.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs/bench"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """In contestants: a toy's steps are too small for more, which would only wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def toy(folder: Path, **settings: Any) -> dict[str, Any]:
    """A benchmark of seconds, in the embedded world."""
    return {
        "name": "toy",
        "run": {
            "model": {"name_or_path": "toy", "init": "random", "dtype": "float32"},
            "data": {"train": "toy", "limit": 100, "max_length": 60, "max_prompt_length": 40},
            "train": {"global_batch_size": 4},
        },
        "contestants": {"orpo_ray": {"trainer": "orpo_ray"}, "padded": {"trainer": "padded"}},
        "steps": 2,
        "warm_up": 1,
        "storage": {"path": str(folder)},
        **settings,
    }  # fmt: skip


def parsed(folder: Path, **settings: Any) -> BenchmarkConfig:
    return parse_as(BenchmarkConfig, toy(folder, **settings), [], "bench.yaml")


# The configuration


STAGES = sorted(CONFIGS.glob("evaluation-*.yaml"))


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.yaml")) - set(STAGES)), ids=lambda path: path.stem)
def test_a_shipped_benchmark_of_trainers_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_benchmark(path)
    assert isinstance(config, BenchmarkConfig)
    assert config.name == path.stem
    assert config.steps >= 5 and config.warm_up >= 2
    assert config.contestants[next(iter(config.contestants))].trainer == "orpo_ray"
    for name in config.contestants:
        training = config.training(name)
        assert (Path(training.model.name_or_path) / "config.json").is_file()
        assert (training.optim.schedule, training.optim.warmup_steps) == ("constant", 0)
        assert training.train.global_batch_size <= 16
    assert (config.needs == "cuda") == path.stem.endswith("-gpu")
    assert config.needs is None or config.turns == "runs"  # a GPU has room for one contestant


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_shipped_benchmark_of_a_stage_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_benchmark(path)
    assert not isinstance(config, BenchmarkConfig)
    assert config.name == path.stem == f"evaluation-{config.measures}"
    assert config.rounds >= 3 and config.prompts.limit is not None
    for shape in {"policy", "judge"} & set(type(config).model_fields):
        assert (Path(getattr(config, shape)) / "config.json").is_file()


def test_what_a_benchmark_measures_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text("{name: a, measures: speed}")
    with pytest.raises(UserError) as error:
        load_benchmark(path)
    expected = "measures: should be one of generation, scoring, pipeline, judging, training (got 'speed')"
    assert str(error.value) == f"{path}: {expected}"
    path.write_text("{name: a, measures: scoring, tokenizer: t, prompts: {source: s}, judge: j, policy: p}")
    with pytest.raises(UserError, match=r"unknown key policy"):
        load_benchmark(path)


def test_the_other_trainers_are_pinned_once() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    pinned = [line for line in (ROOT / "requirements/bench.txt").read_text().splitlines() if "==" in line]
    assert sorted(extra) == pinned
    assert set(pinned) & set((ROOT / "requirements/cpu.lock").read_text().splitlines()) == {"accelerate==1.15.0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": {"model": {"name_or_path": "toy"}, "data": {"train": "toy"}, "trian": {}}},
         "run: unknown key trian; did you mean train?"),
        ({"run": {"model": {"name_or_path": "toy"}, "data": {"train": "toy"}, "name": "x"}},
         "run.name: is the benchmark's own; set name at the top"),
        ({"contestants": {"a": {"trainer": "orpo_ray", "overrides": {"optim.lrr": 1}}}},
         "contestants.a: unknown key optim.lrr; did you mean optim.lr?"),
        ({"contestants": {"a": {"trainer": "trl", "overrides": {"objective.nll_tokens": "chosen"}}}},
         "contestants.a: trl computes the objective orpo with nll_tokens prompt_and_chosen alone"),
        ({"contestants": {"a": {"trainer": "ray"}}},
         "contestants.a: a run through Ray cannot stop between steps; set turns: runs"),
        ({"contestants": {"a": {"trainer": "trl", "stretch": 10}}},
         "contestants.a: stretch is for the trainer orpo_ray"),
        ({"repeats": 3}, "repeats is for turns: runs; set steps instead"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(tmp_path, **settings)
    assert str(error.value) == f"bench.yaml: {message}"


def test_overrides_of_a_contestant(tmp_path: Path) -> None:
    contestants = {"a": {"trainer": "orpo_ray"}, "b": {"trainer": "orpo_ray", "overrides": {"optim.lr": 0.5}}}
    config = parsed(tmp_path, contestants=contestants)
    assert (config.training("a").optim.lr, config.training("b").optim.lr) == (8e-6, 0.5)
    assert config.training("a") == config.training("b").model_copy(update={"optim": config.training("a").optim})


# The statistics


def reports(*seconds: float) -> list[StepReport]:
    return [StepReport(s, int(s * 100), int(s * 1000), None) for s in seconds]


WORKS = [Work(pairs=8, tokens=100, flops=1e3), Work(8, 200, 2e3), Work(8, 400, 4e3)]


def test_statistics_of_made_up_rounds() -> None:
    first = Record(WORKS, reports(1, 2, 4), [{"data": 1.0, "forward": 3.0}, {"data": 3.0, "forward": 5.0}])
    other = Record(WORKS, reports(3, 4, 20))
    alone = statistics_of(first, first, peak=1e4)
    assert alone["seconds"] == {"median": 2, "min": 1, "max": 4}
    assert alone["pairs_per_second"] == {"median": 4, "min": 2, "max": 8}
    assert alone["tokens_per_second"] == {"median": 100, "min": 100, "max": 100}
    assert alone["mfu"] == {"median": 0.1, "min": 0.1, "max": 0.1}
    assert (alone["peak_bytes"], alone["resident_bytes"]) == (400, 4000)
    assert alone["parts"] == {"data": 2.0, "forward": 4.0}
    assert "seconds_to_first" not in alone
    beside = statistics_of(other, first, peak=1e4)
    assert beside["seconds_to_first"] == {"median": 3, "min": 2, "max": 5}  # of each round, not of the medians (2)
    assert beside["tokens_to_first"] == {"median": 1, "min": 1, "max": 1}
    longer = Record([replace(work, tokens=2 * work.tokens) for work in WORKS], reports(3, 4, 20))
    assert statistics_of(longer, first, 1e4)["seconds_to_first_by_tokens"] == {"median": 1.5, "min": 1, "max": 2.5}


def test_what_cannot_be_told_is_none() -> None:
    unknown = Record(WORKS, [StepReport(1.0, None, 7, None)] * 3)
    lost = Record(WORKS, not_measured="out of memory")
    summary = statistics_of(unknown, lost, peak=1e4)
    assert (summary["peak_bytes"], summary["resident_bytes"]) == (None, 7)
    assert "seconds_to_first" not in summary


def pipeline() -> dict[str, Any]:
    """A made-up result of three rounds."""
    settings = {"name": "p", "measures": "pipeline", "tokenizer": "t", "prompts": {"source": "s"}, "policy": "p"}
    config = TypeAdapter(EvaluationBenchmarkConfig).validate_python({**settings, "judge": "j"})
    ways = {"at once": (11, 12, 30), "generation": (5, 12, 10), "scoring": (10, 6, 20)}
    return stage_result(
        config, {name: Way(lambda: 0, "responses", 700, [*s], [60, 60, 60]) for name, s in ways.items()}
    )


def test_statistics_of_a_stage() -> None:
    result = pipeline()
    assert result["to_the_slower"] == {"median": 1.1, "min": 1, "max": 1.5}  # of each round: 11/10, 12/12, 30/20
    both, alone, _ = result["contestants"].values()
    assert "seconds_to_first" not in both
    assert both["per_second"] == {"median": 5, "min": 2, "max": 60 / 11}
    assert alone["seconds_to_first"] == {"median": 5 / 11, "min": 1 / 3, "max": 1}
    assert alone["rounds"] == {"seconds": [5, 12, 10], "made": [60, 60, 60]}


# The tables


def made_up(name: str) -> dict[str, Any]:
    first = Record(WORKS, reports(1, 2, 4), [{"data": 0.5, "forward": 1.5}])
    config = {"contestants": {"ours": {"stretch": None}, "long": {"stretch": 10}, "gone": {"stretch": None}}}
    longer = Record([replace(work, tokens=2 * work.tokens) for work in WORKS], reports(3, 6, 18))

    def entry(record: Record) -> dict[str, Any]:
        rounds = {"seconds": [report.seconds for report in record.reports]}
        return statistics_of(record, first, 1e4) | {"rounds": rounds}

    return {
        "kind": "trainers side by side", "name": name, "configuration": config,
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_bytes": 2**34, "gpu": None},
        "versions": {"python": "3.11.7", "orpo_ray": "0.1.0", "torch": "2.13.0"},
        "contestants": {
            "ours": entry(first), "long": entry(longer), "gone": {"not_measured": "No module named 'trl'"},
        },
    }  # fmt: skip


def test_the_table_of_results(tmp_path: Path) -> None:
    results, configs, page = tmp_path / "results", tmp_path / "configs", tmp_path / "README.md"
    results.mkdir()
    configs.mkdir()
    (results / "a.json").write_text(json.dumps(made_up("a")))
    stage = pipeline() | {"machine": made_up("")["machine"], "versions": made_up("")["versions"]}
    (results / "p.json").write_text(json.dumps(stage))
    (results / "other.json").write_text(json.dumps({"rounds": []}))
    (configs / "a.yaml").write_text(yaml.safe_dump(toy(tmp_path, name="a")))
    (configs / "b.yaml").write_text(yaml.safe_dump(toy(tmp_path, name="b", needs="cuda")))
    (configs / "c.yaml").write_text(yaml.safe_dump(toy(tmp_path, name="c")))
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.rewrite(page, results, configs)
    text = page.read_text()
    assert text.splitlines() == [
        "before",
        table.BEGIN,
        "| benchmark | contestant | seconds a step | of the first's | over all | pairs/s | tokens/s | MFU | peak GiB "
        "| in all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `a` | ours | 2.00 (1.00–4.00) |  |  | 4.00 | 100 | 10% | 0.00 | 0.00 |",
        "|  | long | 6.00 (3.00–18.00) | 3.00 (3.00–4.50) | 3.86 | 1.33 | 67 | 3% | 0.00 | 0.00 |",
        "|  | gone | not measured: No module named 'trl' |  |  |  |  |  |  |  |",
        "| `b` | orpo_ray, padded | not measured: no GPU here |  |  |  |  |  |  |  |",
        "| `c` | orpo_ray, padded | not measured: not yet run |  |  |  |  |  |  |  |",
        "",
        "| benchmark | contestant | seconds | of the first's | a second | tokens computed | times the first's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `p` | at once | 12.00 (11.00–30.00) |  | 5.0 responses | 700 |  |",
        "|  | generation | 10.00 (5.00–12.00) | 0.455 (0.333–1.00) | 6.0 responses | 700 | 1.00 |",
        "|  | scoring | 10.00 (6.00–20.00) | 0.667 (0.5–0.909) | 6.0 responses | 700 | 1.00 |",
        "",
        "- `a`, ours: data 25.0%, forward 75.0%",
        "- `a`, long: 2.00 times the tokens in 3.00 times the seconds, so 1.50 (1.50–2.25) of the cost per token",
        "- `p`, both at once take 1.10 (1.00–1.50) of the slower one's seconds",
        "- measured on Some CPU, 2 cores, 16 GiB, with python 3.11.7, torch 2.13.0",
        table.END,
        "after",
    ]
    table.rewrite(page, results, configs)
    assert page.read_text() == text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(table.BEGIN)
    with pytest.raises(UserError, match=r"page\.md: has no <!-- benchmarks -->"):
        table.rewrite(tmp_path / "page.md", tmp_path, tmp_path)


def test_the_tables_say_what_the_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = Path("docs/benchmarks.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    table.rewrite(tmp_path / "page.md", table.RESULTS, table.CONFIGS)
    assert page == (tmp_path / "page.md").read_text(encoding="utf-8"), "run: make bench"


def test_the_readme_says_what_the_results_say() -> None:
    found = {result["name"]: result["contestants"] for result in table.read_results(ROOT / table.RESULTS)}

    def ratio(benchmark: str, contestant: str) -> float:
        return float(found[benchmark][contestant]["seconds_to_first"]["median"])

    def peak(contestant: str) -> str:
        return f"{found['hh-opt-52m'][contestant]['peak_bytes'] / 2**30:.1f} GiB"

    hh, ultrafeedback = (
        [ratio(f"{name}-opt-52m", contestant) for contestant in ("trl", "padded")] for name in ("hh", "ultrafeedback")
    )
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for sentence in (
        f"HH-RLHF pairs takes TRL's `ORPOTrainer` {hh[0]:.1f} times as long as this package, two padded forwards as in "
        f"the authors' code {hh[1]:.1f} times; of UltraFeedback's longer pairs {ultrafeedback[0]:.1f} and "
        f"{ultrafeedback[1]:.1f} times.",
        f"TRL's memory peaks at {peak('trl')} there, this package's at {peak('orpo_ray')}.",
        f"Generation takes bare vLLM {ratio('evaluation-generation', 'LLM.generate'):.2f} of the time,",
        f"padded batches {ratio('evaluation-scoring', 'padded, 24'):.1f} times as long.",
    ):
        assert sentence in said


# The processes


@pytest.fixture
def contestant(tmp_path: Path) -> Iterator[ContestantProcess]:
    process = ContestantProcess(Task("padded", parsed(tmp_path).training("padded"), None, warm_up=1, steps=4))
    yield process
    process.stop()


def test_a_contestant_that_is_killed_is_lost(contestant: ContestantProcess) -> None:
    contestant.load()
    warm = contestant.step("warm_up")
    timed = contestant.step("timed")
    assert warm.seconds > 0 and warm.peak_bytes is None and timed.parts is None
    assert timed.peak_bytes is not None and timed.resident_bytes is not None
    assert 2**20 < timed.peak_bytes < timed.resident_bytes
    os.kill(contestant.pid, signal.SIGKILL)
    with pytest.raises(Lost, match=r"^its process was ended by SIGKILL \(out of memory\?\)$"):
        contestant.step("timed")


@pytest.mark.long
def test_a_contestant_that_fails_is_lost_with_its_last_line(tmp_path: Path) -> None:
    beyond = Task(
        "orpo_ray", parsed(tmp_path).training("orpo_ray"), stretch=10, warm_up=1, steps=4
    )  # no such positions
    process = ContestantProcess(beyond)
    try:
        process.load()
        with pytest.raises(Lost, match=r"^IndexError: index out of range in self$"):
            process.step("warm_up")
    finally:
        process.stop()


def parent(folder: Path, told: multiprocessing.connection.Connection) -> None:
    process = ContestantProcess(Task("padded", parsed(folder).training("padded"), None, 1, 10**6))
    process.load()
    told.send(process.pid)
    while True:
        process.step("warm_up")


def test_no_contestant_outlives_a_killed_parent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=parent, args=(tmp_path, its))
    process.start()
    its.close()
    child = psutil.Process(mine.recv())
    assert child.is_running()
    process.kill()
    process.join()
    wait_for([child])


def wait_for(processes: list[psutil.Process]) -> None:
    """Until none of them runs any more."""
    deadline = time.monotonic() + 30
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline, "a contestant outlived its parent"
        time.sleep(0.05)


# The command


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "orpo_ray.cli", "bench", str(config), *arguments]


def bench(config: Path, *arguments: str) -> int:
    """The command in this process, which has imported what it needs; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(config), *arguments])
    assert ended.value.code is None or isinstance(ended.value.code, int)
    return ended.value.code or 0


def write(folder: Path, **settings: Any) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(toy(folder, **settings)))
    return path


def test_a_benchmark_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package that cannot be imported, whether or not the real one is installed here.
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl/__init__.py").write_text("raise ImportError(\"No module named 'trl'\")\n")
    path = write(tmp_path)
    arguments = ("contestants.trl={trainer: trl}", "run.train.global_batch_size=3", "--out", str(tmp_path / "out"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    code = bench(path, *arguments)
    told = capsys.readouterr()
    assert code == 0, told.err
    assert told.out.splitlines()[-1] == str(tmp_path / "out/toy.json")
    result = json.loads((tmp_path / "out/toy.json").read_text())
    ours, padded, trl = (result["contestants"][name] for name in ("orpo_ray", "padded", "trl"))
    assert trl == {"trainer": "trl", "not_measured": "No module named 'trl' (pip install orpo_ray[bench])"}
    assert f"trl: not measured: {trl['not_measured']}\n" in told.out
    config = load_as(BenchmarkConfig, path, list(arguments[:2]))
    assert result["configuration"] == config.model_dump(mode="json")
    task = Task("padded", config.training("padded"), None, 1, 3)
    tokens = [sum(len(ids) for pair in task.pairs(step) for ids in pair) for step in (1, 2)]
    for entry in (ours, padded):
        rounds = entry["rounds"]
        assert rounds["pairs"] == [3, 3] and rounds["tokens"] == tokens
        assert all(0 < s < 60 for s in rounds["seconds"]) and len(rounds["seconds"]) == 2
        assert all(0 < peak < whole for peak, whole in zip(rounds["peak_bytes"], rounds["resident_bytes"], strict=True))
        assert 0 < entry["mfu"]["median"] < 1
    assert ours["rounds"]["flops"] == padded["rounds"]["flops"]
    assert padded["seconds_to_first"]["max"] == pytest.approx(
        max(p / o for p, o in zip(padded["rounds"]["seconds"], ours["rounds"]["seconds"], strict=True))
    )
    assert len(ours["rounds"]["parts"]) == 3 and padded["rounds"]["parts"] == []
    assert set(ours["parts"]) == {"data", "forward", "backward", "optimizer"}
    assert result["machine"]["cores"] >= 1 and result["versions"]["torch"]
    assert result["peak_flops"]["float32"] > 1e8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "unknown key stepz; did you mean steps?"),
        ({"steps": 60}, "contestants.orpo_ray: toy and train.epochs make"),
        ({"contestants": {"long": {"trainer": "orpo_ray", "stretch": 10}}},
         "contestants.long.stretch: 10 times data.max_length=60 is more than the 128 positions of toy"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_plain_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], message: str
) -> None:
    code = bench(write(tmp_path, **settings))
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1), told
    assert message in told


NO_GPU = "orpo-ray: toy: needs a CUDA device, and there is none here\n"


def test_a_benchmark_of_gpus_is_refused_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = bench(write(tmp_path, needs="cuda"))
    assert (code, capsys.readouterr().err) == (2, NO_GPU)


@pytest.mark.long
def test_imports_add_nothing_to_that_one_line(tmp_path: Path) -> None:
    """In a process of its own: what it imports must not add to the one line either."""
    done = subprocess.run(
        command(write(tmp_path, needs="cuda")), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, NO_GPU)


STARTS_ANEW = "orpo-ray: interrupted; the same command starts anew: orpo-ray bench"


def test_ctrl_c_while_contestants_start_ends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: an interrupt as soon as both are there."""
    me, children = psutil.Process(), []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        others = set(me.children())
        while len(children) < 2:
            children[:] = [child for child in me.children() if child not in others]
            time.sleep(0.01)
        me.send_signal(signal.SIGINT)

    watching = threading.Thread(target=interrupt)
    path = write(tmp_path)
    try:
        watching.start()
        code = bench(path, "--out", str(tmp_path))
    finally:
        watching.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert STARTS_ANEW in capsys.readouterr().err
    wait_for(children)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.long
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(write(tmp_path), "run.train.epochs=50", "steps=500", "--out", str(tmp_path)),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    assert running.stderr.readline().startswith("toy: orpo_ray: ")
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) == 2
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert STARTS_ANEW in running.stderr.read()
    running.stderr.close()
    wait_for(children)
    assert not list(tmp_path.glob("*.json"))
