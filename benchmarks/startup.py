"""How long commands take to begin, and where that goes; of this tree beside another, in turn.

    python benchmarks/startup.py --before TREE --rounds 3 start stage loss defaults
    python benchmarks/startup.py --profile

Each row is a real command on this machine, alone; a tree is chosen by PYTHONPATH. Results of the rows that are named go
into benchmarks/results/startup.json, beside those held there. `--profile` draws a start by process and phase instead
(`orpo_ray.telemetry.phases`), with the CPU seconds of every process that took part.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from orpo_ray.telemetry.phases import VARIABLE

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/startup.json"
BARS = {
    "start": 0.4, "running": 0.3, "stage": 0.3, "loss": 0.5, "defaults": 0.65, "demo": 0.5, "sweep": 0.4,
}  # fmt: skip
"""At most this part of the seconds before (issue 14)."""


class Tree:
    """A checkout whose commands are run, in a folder for what they make."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path.resolve(), folder

    def run(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        settings = {
            **os.environ, "PYTHONPATH": str(self.path), "DS_ACCELERATOR": "cpu", "RAY_USAGE_STATS_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **environment,
        }  # fmt: skip
        command = [sys.executable, "-m", "orpo_ray.cli", *words]
        return subprocess.Popen(command, cwd=self.path, env=settings, stdout=subprocess.DEVNULL, stderr=2)

    def new(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name


def lines(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics so far."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def steps(run: Path) -> int:
    return max((line["step"] for line in lines(run) if "loss" in line), default=0)


def wait(met: Callable[[], bool], process: subprocess.Popen[bytes]) -> float:
    """The time when it is so. Raises `RuntimeError` where the process ends before."""
    while not met():
        if process.poll() is not None and not met():
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.01)
    return time.monotonic()


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


def start(tree: Tree, **environment: str) -> float:
    """From the command to the first optimizer step: toy-base, two workers."""
    run, began = tree.new("start"), time.monotonic()
    words = ["configs/toy-base.yaml", "name=start", f"storage.path={tree.folder}", "train.max_steps=2"]
    process = tree.run("train", *words, **environment)
    seconds = wait(lambda: steps(run) > 0, process) - began
    finish(process)
    return seconds


def running(tree: Tree) -> float:
    """The same where a cluster of this machine runs already, which `ray start` has begun."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    ray = str(Path(sys.executable).with_name("ray"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    cluster = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={tree.folder / 'ray'}", *words],
        env={**os.environ, **token}, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        time.sleep(10)  # until its first workers wait
        return start(tree, RAY_ADDRESS=f"127.0.0.1:{port}", **token)
    finally:
        for one in [*psutil.Process(cluster.pid).children(recursive=True), cluster]:
            one.kill()
        cluster.wait()


def stage(tree: Tree) -> float:
    """From the end of a pipeline's first run to the first step of its second."""
    few = ["train.max_steps=2", "train.eval_every_steps=2", "train.checkpoint_every_steps=2"]
    first, second = tree.new("toy-base"), tree.new("toy-sft")
    tree.new("toy-pipeline")
    process = tree.run(
        "pipeline", "configs/toy-pipeline.yaml", f"storage.path={tree.folder}",
        *(f"train.{label}.{key}" for label in ("base", "sft", "orpo") for key in few),
    )  # fmt: skip
    began = wait((first / "summary.json").is_file, process)
    seconds = wait(lambda: steps(second) > 0, process) - began
    process.send_signal(signal.SIGINT)
    process.wait()
    return seconds


def loss(tree: Tree) -> float:
    """From a worker's death to the first step after it, when it had a checkpoint."""
    run = tree.new("loss")
    process = tree.run(
        "train", "configs/toy-base.yaml", "name=loss", f"storage.path={tree.folder}", "train.max_steps=5000",
        "train.epochs=100", "train.checkpoint_every_steps=10", "train.eval_every_steps=5000",
    )  # fmt: skip
    wait(lambda: len(list(run.glob("checkpoints/step-*/manifest.json"))) > 1, process)
    workers = [one for one in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(one.info["cmdline"])]
    workers[0].kill()
    began = time.monotonic()
    time.sleep(0.5)  # the other worker may write a line of a step that it was in
    size = (run / "metrics.jsonl").stat().st_size
    # The repeated steps are cut off first, so the file is shorter before it grows.
    wait(lambda: (run / "metrics.jsonl").stat().st_size != size, process)
    seconds = wait(lambda: _resumed(run), process) - began
    process.send_signal(signal.SIGINT)
    process.wait()
    return seconds


def _resumed(run: Path) -> bool:
    """Whether a step was written after the last start of workers."""
    size = (run / "metrics.jsonl").stat().st_size
    time.sleep(0.02)
    return (run / "metrics.jsonl").stat().st_size > size


def defaults(tree: Tree) -> float:
    """A step of 52 million parameters through `orpo-ray train`, one worker, defaults: the median of eight."""
    run = tree.new("defaults")
    config = tree.folder / "defaults.yaml"
    setting = yaml.safe_load((tree.path / "configs/bench/hh-opt-52m.yaml").read_text())["run"]
    shared = ROOT.parent / "shared"
    setting["model"] |= {
        "tokenizer": str(shared / "tokenizers/opt"), "name_or_path": str(tree.path / "configs/models/opt-52m")
    }  # fmt: skip
    setting["data"] |= {"train": str(shared / "data/hh_rlhf/harmless-base-test.jsonl.gz"), "eval_fraction": 0.004}
    setting["train"] |= {"max_steps": 10, "checkpoint_every_steps": 1000}
    config.write_text(yaml.safe_dump({"name": "defaults", **setting, "storage": {"path": str(tree.folder)}}))
    finish(tree.run("train", str(config)))
    rates = [line["pairs_per_second"] for line in lines(run) if "loss" in line][2:]
    return float(statistics.median(8 / rate for rate in rates))


def demo(tree: Tree) -> float:
    """The whole demo."""
    out, began = tree.new("demo"), time.monotonic()
    finish(tree.run("demo", "--out", str(out)))
    return time.monotonic() - began


def sweep(tree: Tree) -> float:
    """The toy sweep of twelve trials. Its base and SFT models are made before."""
    for name in ("toy-base", "toy-sft"):
        if not (tree.folder / name / "summary.json").is_file():
            tree.new(name)
            start_from = [] if name == "toy-base" else [f"model.name_or_path={tree.folder / 'toy-base'}"]
            finish(tree.run("train", f"configs/{name}.yaml", f"storage.path={tree.folder}", *start_from))
    tree.new("toy-sweep")
    began = time.monotonic()
    finish(
        tree.run(
            "sweep", "configs/toy-sweep.yaml", f"storage.path={tree.folder}",
            f"train.model.name_or_path={tree.folder / 'toy-base'}", f"finalists.against={tree.folder / 'toy-sft'}",
        )
    )  # fmt: skip
    return time.monotonic() - began


ROWS: dict[str, Callable[[Tree], float]] = {
    row.__name__: row for row in (start, running, stage, loss, defaults, demo, sweep)
}


def compare(before: Path, rounds: int, rows: list[str]) -> None:
    """Measure rows of both trees in turn, and write them down as each is done."""
    with tempfile.TemporaryDirectory() as folder:
        trees = {"before": Tree(before, Path(folder) / "before"), "after": Tree(ROOT, Path(folder) / "after")}
        for tree in trees.values():
            tree.folder.mkdir()
        for row in rows:
            seconds: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(rounds):
                for name, tree in trees.items():
                    seconds[name].append(round(ROWS[row](tree), 3))
                    print(row, name, seconds[name][-1], file=sys.stderr, flush=True)
            ratio = statistics.median(seconds["after"]) / statistics.median(seconds["before"])
            held = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
            held[row] = {
                "what": ROWS[row].__doc__, **seconds, "ratio": round(ratio, 3), "bar": BARS[row],
                "commit": _commit(ROOT), "commit_before": _commit(before),
            }  # fmt: skip
            RESULT.write_text(json.dumps(held, indent=1) + "\n")
            print(f"{row}: {ratio:.2f} of before (bar {BARS[row]})", flush=True)


def _commit(tree: Path) -> str:
    describe = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def profile() -> None:
    """Print where a start goes."""
    with tempfile.TemporaryDirectory() as folder:
        phases, tree = Path(folder) / "phases", Tree(ROOT, Path(folder))
        run, began, clock = tree.folder / "start", time.time(), time.monotonic()
        process = tree.run(
            "train", "configs/toy-base.yaml", "name=start", f"storage.path={folder}", "train.max_steps=2",
            **{VARIABLE: str(phases)},
        )  # fmt: skip
        cpu: dict[int, tuple[str, float]] = {}
        first = 0.0
        while process.poll() is None:
            cpu |= {one.pid: (_name(one), sum(one.cpu_times()[:2])) for one in _alive(process.pid)}
            if steps(run) and not first:
                first = time.monotonic() - clock
            time.sleep(0.05)
        print(f"first step after {first:.1f} s\n\nphase by phase")
        for line in sorted(map(json.loads, phases.read_text().splitlines()), key=lambda line: line["began"]):
            print(
                f"{line['began'] - began:7.2f} s  +{line['seconds']:5.2f} s, {line['cpu_seconds']:5.2f} of CPU  "
                f"{line['process']:>8} {line['phase']}"
            )
        print("\nCPU seconds by process, to the command's end")
        for pid, (name, seconds) in sorted(cpu.items(), key=lambda entry: -entry[1][1]):
            if seconds >= 0.05:
                print(f"{seconds:7.2f}  {pid:>8} {name}")


def _alive(pid: int) -> Iterator[psutil.Process]:
    try:
        own = psutil.Process(pid)
        yield from [own, *own.children(recursive=True)]
    except psutil.Error:
        return


def _name(process: psutil.Process) -> str:
    try:
        words = process.cmdline() or [process.name()]
    except psutil.Error:
        return "gone"
    return " ".join(Path(word).name if "/" in word else word for word in words)[:80]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--before", type=Path, help="the other tree")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile()
    elif options.before is None:
        parser.error("--before TREE: what to measure beside")
    else:
        compare(options.before, options.rounds, options.rows or list(ROWS))


if __name__ == "__main__":
    main()
