"""Real runs on a real Ray cluster of this machine, for faults to be brought about in: nodes, runs and the verdict."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file
from secret_scan import leaks

from orpo_ray.data import toyworld
from orpo_ray.data.sources import ToySource

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds that anything may take; only a run that does not recover at all takes so long
MOMENTS = 3  # in each disturbed run
TIMING = {
    "pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes", "rollout_seconds", "scoring_seconds",
    "rollout_tokens_per_second", "score_tokens_per_second",
}  # fmt: skip
OF_ENGINE = {"mismatch_mean", "mismatch_max", "mismatch_k3"}
"""An engine rounds by what else it draws at a time, which a kill changes; nothing is learned from that."""
NODE_CPUS = 1
SECRETS = ("HF_TOKEN", "RAY_AUTH_TOKEN")  # in the environment of everything here; they belong in no run folder

Line = dict[str, Any]


class Nodes:
    """A head, where the controller is, and two nodes with room for one worker each. All are processes of ours."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.workers: list[Any] = []
        for _ in range(2):
            self.add()

    def add(self) -> Any:
        node = self._cluster.add_node(num_cpus=NODE_CPUS)
        self.workers.append(node)
        return node

    def lose(self, node: Any) -> None:
        """As a machine goes away: everything on it at once, without a word."""
        processes = self.processes(node)
        for process in (psutil.Process(raylet_of(node)), *processes):
            kill(process)
        self.workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: float) -> None:
        """Tell the cluster that a node goes away, as `ray drain-node` and cloud autoscalers do."""
        import ray
        from ray.core.generated import autoscaler_pb2

        deadline = time.time_ns() // 1_000_000 + int(1000 * seconds)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = ray._raylet.GcsClient(address=self.address).drain_node(node.node_id, reason, "a test", deadline)
        assert accepted, why

    @staticmethod
    def processes(node: Any) -> list[psutil.Process]:
        return psutil.Process(raylet_of(node)).children(recursive=True)

    def train_workers(self) -> list[psutil.Process]:
        found = [process for node in self.workers for process in self.processes(node)]
        return [process for process in found if "RayTrainWorker" in title(process)]

    def engines(self) -> list[psutil.Process]:
        """Of runs on rollouts, wherever they are: by what only processes of this cluster know."""
        found = [process for process in psutil.process_iter() if title(process).startswith("ray::Live")]
        return [
            process for process in found if environment(process).get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
        ]

    def node_of(self, worker: psutil.Process) -> Any:
        return next(node for node in self.workers if worker in self.processes(node))

    def replenish(self) -> None:
        """Two nodes again, whatever the test before has left."""
        while len(self.workers) < 2:
            self.add()

    def stop(self) -> None:
        self._cluster.shutdown()


def raylet_of(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


class Run:
    """One run of `orpo-ray train`, typed as a person would, by a process of its own."""

    def __init__(self, nodes: Nodes, base: Path, name: str, overrides: tuple[str, ...] = ()) -> None:
        self.nodes = nodes
        self.name = name
        self.path = base.parent / name
        self.log = base.parent / f"{name}.log"
        self._command = [sys.executable, "-m", "orpo_ray.cli", "train", str(base), f"name={name}", *overrides]
        self.overrides = overrides
        self._driver: subprocess.Popen[bytes] | None = None
        self._lines_before = 0

    # What a person does.

    def type_command(self, *more: str) -> None:
        """Type the command, again; `more` overrides."""
        environment = {**os.environ, "RAY_ADDRESS": self.nodes.address, "PYTHONPATH": str(REPOSITORY)}
        with self.log.open("ab") as log:
            self._driver = subprocess.Popen(
                [*self._command, *more], stdout=log, stderr=log, env=environment, cwd=REPOSITORY, start_new_session=True
            )

    def ends(self) -> int:
        """Wait for the command; its exit code."""
        assert self._driver is not None
        return self._driver.wait(timeout=PATIENCE)

    def interrupt(self, how: signal.Signals) -> int:
        assert self._driver is not None
        self._driver.send_signal(how)
        return self.ends()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()
        wait_for(lambda: not self.nodes.train_workers(), "workers of a stopped run to go away")

    # What a person sees.

    @property
    def checkpoints(self) -> Path:
        place = next((o.partition("=")[2] for o in self.overrides if o.startswith("storage.checkpoints=")), None)
        return self.path / "checkpoints" if place is None else Path(place) / self.name

    def lines(self) -> list[Line]:
        """Whole lines of metrics.jsonl."""
        try:
            text = (self.path / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def step(self) -> int:
        return max((line["step"] for line in self.lines() if "loss" in line), default=0)

    def responses(self, round: int) -> int:
        """Drawn so far in a round of rollouts."""
        path = self.path / "rollouts" / f"{round:06d}.jsonl"
        try:
            return max(0, path.read_bytes().count(b"\n") - 1)
        except FileNotFoundError:
            return 0

    def events(self) -> list[str]:
        path = self.path / "events.jsonl"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.is_file() else []

    def finished_checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(path.parent for path in self.checkpoints.glob("step-*/manifest.json"))

    def unfinished_checkpoints(self) -> list[Path]:
        return [path for path in self.checkpoints.glob("step-*") if not (path / "manifest.json").is_file()]

    def workers(self) -> list[psutil.Process]:
        """By rank. TensorBoard names files by the time and the process that writes them, which is rank 0's."""
        newest = max(self._recordings(), key=lambda path: float(path.name.split(".")[3]))
        leader = int(newest.name.split(".")[-2])
        return sorted(self.nodes.train_workers(), key=lambda worker: worker.pid != leader)

    def _recordings(self) -> list[Path]:
        return list((self.path / "tensorboard").glob("events.*"))

    # Waiting.

    def wait(self, met: Callable[[], Any], what: str) -> None:
        """Raises `AssertionError` where the command ends first."""

        def going() -> Any:
            found = met()
            assert found or self._driver is None or self._driver.poll() is None, self.said()[-4000:]
            return found

        wait_for(going, f"{self.name}: {what}", lambda: self.said()[-4000:])

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: self.step() >= step, f"step {step}")

    def starts(self) -> int:
        """How often workers have begun to record: each time a TensorBoard file, after metrics.jsonl was cut back."""
        return len(self._recordings())

    def wait_for_restart(self, starts: int) -> int:
        """Wait for the first step after one more than `starts`; the step that it goes on from."""
        self.wait(lambda: self.starts() > starts, "restart")
        kept = self.step()
        self.wait(lambda: self.step() > kept, "the step after a restart")
        return kept


def wait_for(met: Callable[[], Any], what: str, tell: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:g} s for {what}\n{tell()}")
        time.sleep(0.01)


def final_state(run: Run) -> dict[str, NDArray[np.float32]]:
    """Weights and both moments of every trained parameter, whole, from the last checkpoint."""
    pieces: dict[str, dict[int, NDArray[np.float32]]] = {}
    for file in run.finished_checkpoints()[-1].glob("rank-*.safetensors"):
        for key, vector in load_file(file).items():
            name, start, part = re.fullmatch(r"(.*)@(\d+)/(\w+)", key).groups()  # type: ignore[union-attr]
            pieces.setdefault(f"{name}/{part}", {})[int(start)] = vector
    return {key: np.concatenate([runs[start] for start in sorted(runs)]) for key, runs in pieces.items()}


def assert_same(run: Run, undisturbed: Run, *, tolerance: float = 0.0) -> None:
    """The verdict. `tolerance` of weights, where the number of workers was another for a while."""
    assert leaks(run.path, {name: os.environ[name] for name in SECRETS}) == []
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in TIMING | OF_ENGINE} for line in one.lines()]
        for one in (run, undisturbed)
    )
    assert [line["step"] for line in ours] == [line["step"] for line in theirs], "a step is missing or there twice"
    assert [line.get("tokens") for line in ours] == [line.get("tokens") for line in theirs], "other pairs"
    state, expected = final_state(run), final_state(undisturbed)
    assert state.keys() == expected.keys()
    if tolerance:
        for mine, its in zip(ours, theirs, strict=True):
            assert {k: v for k, v in mine.items() if v is not None} == _near(its, tolerance)
        apart = {key: float(np.abs(state[key] - expected[key]).max()) for key in state if key.endswith("/weight")}
        assert max(apart.values()) <= tolerance, apart
        return
    assert ours == theirs
    for key, vector in expected.items():
        assert np.array_equal(state[key], vector), f"{key} differs in its bits"
    exported, model = ((one.path / "model" / "model.safetensors").read_bytes() for one in (run, undisturbed))
    assert exported == model, "the model that was kept differs"


def _near(line: Line, tolerance: float) -> Any:
    import pytest

    return {k: pytest.approx(v, rel=100 * tolerance, abs=100 * tolerance) for k, v in line.items() if v is not None}


def write_base(folder: Path) -> Path:
    """The configuration that all runs have in common, and its data: 600 pairs, so that epochs end within steps."""
    files = {}
    for name, source, count in (("train", "toy", 600), ("eval", "toy-test", 40)):
        files[name] = str(folder / f"{name}.jsonl")
        records = [record.value for record in islice(ToySource(source).records(), count)]
        Path(files[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    # With OPT's ReLU, rounding that differs decides on which side of a kink an activation is: gradients jump, and two
    # runs that should agree to rounding part within some twenty steps.
    network = toyworld.model_config()
    network.activation_function = "gelu"
    network.save_pretrained(folder / "network")
    base = {
        "name": "base",
        "model": {
            "name_or_path": str(folder / "network"), "init": "random", "tokenizer": "toy", "dtype": "float32",
        },
        "data": {**files, "max_length": 128, "max_prompt_length": 64},
        "objective": {"lambda": 1.0},
        # With AdamW's usual eps of 1e-8 rounding decides the sign of tiny updates, and another number of ranks rounds
        # otherwise.
        "optim": {"lr": 1e-3, "eps": 1e-3, "warmup_steps": 5},
        "train": {
            "max_steps": 36, "epochs": 99, "global_batch_size": 64, "eval_every_steps": 12,
            "checkpoint_every_steps": 4,
        },
        "scaling": {"num_workers": 2, "max_failures": 10},
        "storage": {"path": str(folder)},
    }  # fmt: skip
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(base))
    return path


def moments(rng: random.Random, first: int, last: int) -> list[tuple[int, float]]:
    """A step and a delay in seconds, in each third of the steps `first` to `last`."""
    bounds = np.linspace(first, last, MOMENTS + 1).astype(int)
    return [(rng.randint(low, high - 1), rng.random()) for low, high in pairwise(bounds)]
