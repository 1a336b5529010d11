"""The faults: how each is brought about at one moment of a run, and what is typed again."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_harness import Nodes, Run, kill, step_of, wait_for

NOTICE = 30.0  # seconds between a preemption notice and the end of the machine
OTHER_RANKS = ("optim.lr=1e-4",)  # further apart would be the same rounding, amplified
LONG = ("train.max_steps=120", *OTHER_RANKS)
SLOW = ("train.max_steps=48", "train.global_batch_size=256")
ZERO3 = (
    "train.zero_stage=3", "model.dtype=bfloat16",
    "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A run at the moment of a fault."""

    run: Run
    nodes: Nodes
    rng: random.Random
    """Decides what the fault leaves open."""
    small: Path
    """A small filesystem of its own, where the fault has asked for it."""
    data: Path
    """The file that the run trains on, its own copy."""

    def meet(self, bring: Bring, moment: tuple[int, float], *, restarts: bool = True) -> dict[str, Any]:
        """Wait for the moment, bring the fault about and wait for the next step; what is to be told of it."""
        step, delay = moment
        self.run.wait_for_step(step)
        time.sleep(delay)
        starts, at, since = self.run.starts(), self.run.step(), time.monotonic()
        bring(self)
        if restarts:
            goes_on_from = self.run.wait_for_restart(starts)
        else:
            assert self.run.starts() == starts, "training was to go on"
            goes_on_from = self.run.step()
            self.run.wait_for_step(goes_on_from + 1)
        seconds = round(time.monotonic() - since, 2)
        print(f"{self.run.name}: step {at}, goes on from {goes_on_from} after {seconds} s", flush=True)
        return {"at_step": at, "goes_on_from": goes_on_from, "seconds": seconds}


Bring = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    name: str
    how: str
    """It is brought about, for the table."""
    bring: Bring
    settings: tuple[str, ...] = ()
    """Of the run, and of the undisturbed one beside it."""
    more: tuple[str, ...] = ()
    """Settings that change no result."""
    first: int = 1
    last: int = 30
    """Steps between which the moments are."""
    restarts: bool = True
    """Whether training goes on from a checkpoint rather than from where it was."""
    small_storage: bool = False
    tolerance: float = 0.0
    """Of weights, where the number of workers is another for a while; else all bits are the same."""


def kill_rank(rank: int) -> Bring:
    return lambda scene: kill(scene.run.workers()[rank])


def kill_all(scene: Scene) -> None:
    for worker in scene.run.workers():
        kill(worker)


def kill_while_saving(scene: Scene) -> None:
    run, began = scene.run, time.time()

    def writing() -> bool:
        with suppress(FileNotFoundError):  # one that an earlier moment has left, on its way out
            return any(path.stat().st_ctime > began for path in run.unfinished_checkpoints())
        return False

    run.wait(writing, "a checkpoint to be written")
    kill(scene.rng.choice(run.workers()))
    assert run.unfinished_checkpoints(), "it was killed too late"


def interrupt_driver(how: signal.Signals) -> Bring:
    def bring(scene: Scene) -> None:
        code = scene.run.interrupt(how)
        assert code == (130 if how == signal.SIGINT else -how), scene.run.said()[-4000:]
        scene.run.type_command()

    return bring


def stop_worker(scene: Scene) -> None:
    rank = scene.rng.randrange(2)
    told = len(scene.run.events())
    scene.run.workers()[rank].suspend()
    expected = f"rank {rank} gives no sign of life"
    scene.run.wait(lambda: any(expected in event for event in scene.run.events()[told:]), "the watchdog")


def lose_node(scene: Scene) -> None:
    scene.nodes.lose(scene.nodes.node_of(scene.rng.choice(scene.run.workers())))
    scene.nodes.add()


def preempt(scene: Scene) -> None:
    run, nodes = scene.run, scene.nodes
    node = nodes.node_of(scene.rng.choice(run.workers()))
    before, since = run.finished_checkpoints(), run.step()
    nodes.add()
    end = time.monotonic() + NOTICE
    nodes.drain(node, NOTICE)
    run.wait(lambda: run.finished_checkpoints() != before, "a checkpoint after the notice")
    assert time.monotonic() < end, "the checkpoint came too late"
    assert step_of(run.finished_checkpoints()[-1]) >= since
    run.wait_for_step(run.step() + 2)
    nodes.lose(node)


def limit_memory(scene: Scene) -> None:
    worker = scene.rng.choice(scene.run.workers())
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (worker.memory_info().vms, resource.RLIM_INFINITY))


def fill_storage(scene: Scene) -> None:
    told, filler = len(scene.run.events()), scene.small / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    _wait_until_not_saved(scene.run, told)
    filler.unlink()


def break_storage(scene: Scene) -> None:
    told, folder = len(scene.run.events()), scene.run.checkpoints
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("not a folder")
    _wait_until_not_saved(scene.run, told)
    folder.unlink()
    away.rename(folder)


def _wait_until_not_saved(run: Run, told: int) -> None:
    run.wait(lambda: any("was not saved" in event for event in run.events()[told:]), "a failing save")


def damage_newest(damage: Callable[[Scene, Path], None]) -> Bring:
    def bring(scene: Scene) -> None:
        run = scene.run
        run.wait(lambda: len(run.finished_checkpoints()) > 1, "two checkpoints")
        run.interrupt(signal.SIGKILL)
        wait_for(lambda: not scene.nodes.train_workers(), "the workers to end")
        newest, told = run.finished_checkpoints()[-1], len(run.events())
        damage(scene, newest)
        starts = run.starts()
        run.type_command()
        run.wait(lambda: run.starts() > starts, "the run to go on")
        step = step_of(newest)
        expected = f"the checkpoint of step {step} is passed over"
        assert any(expected in event for event in run.events()[told:]), run.events()

    return bring


def flip_a_byte(scene: Scene, checkpoint: Path) -> None:
    path = scene.rng.choice(sorted(checkpoint.glob("rank-*")))
    with path.open("r+b") as file:
        place = scene.rng.randrange(path.stat().st_size)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << scene.rng.randrange(8)]))


def cut_short(scene: Scene, checkpoint: Path) -> None:
    path = scene.rng.choice(sorted(checkpoint.glob("rank-*")))
    os.truncate(path, scene.rng.randrange(path.stat().st_size))


def lose_manifest(scene: Scene, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def spoil(how: Callable[[Scene, Path], None], why: str) -> Bring:
    """Every checkpoint: nothing is left to go on from, and the run must not begin anew."""

    def bring(scene: Scene) -> None:
        run = scene.run
        run.interrupt(signal.SIGKILL)
        wait_for(lambda: not scene.nodes.train_workers(), "the workers to end")
        whole, metrics = run.checkpoints.with_name("whole"), (run.path / "metrics.jsonl").read_bytes()
        shutil.copytree(run.checkpoints, whole)
        for checkpoint in run.finished_checkpoints():
            how(scene, checkpoint)
        _refused(run, why)
        assert (run.path / "metrics.jsonl").read_bytes() == metrics
        shutil.rmtree(run.checkpoints)
        whole.rename(run.checkpoints)
        run.type_command()

    return bring


def change_data(scene: Scene) -> None:
    run, held = scene.run, scene.data.read_text()
    lines = held.splitlines(keepends=True)
    line = scene.rng.randrange(len(lines))
    lines[line] = lines[line].replace('": "', '": "So ', 1)
    scene.data.write_text("".join(lines))
    if scene.rng.random() < 0.5:  # a lost worker takes up the tokens that the run began with
        starts = run.starts()
        kill(scene.rng.choice(run.workers()))
        run.wait_for_restart(starts)
    run.interrupt(signal.SIGKILL)
    _refused(run, "data.train or data.eval")
    scene.data.write_text(held)
    run.type_command()


def _refused(run: Run, why: str) -> None:
    told = len(run.said())
    run.type_command()
    assert run.ends() == 2, run.said()[told:][-4000:]
    said = run.said()[told:]
    assert "orpo-ray: " in said and why in said and "Traceback" not in said, said


def lose_node_and_add_one_later(scene: Scene) -> None:
    """2 workers, 1 worker, 2 workers."""
    run, nodes = scene.run, scene.nodes
    starts = run.starts()
    nodes.lose(nodes.node_of(scene.rng.choice(run.workers())))
    run.wait_for_restart(starts)
    assert len(nodes.train_workers()) == 1
    nodes.add()
    run.wait(lambda: run.starts() > starts + 1, "the run to go on with two workers")
    assert len(nodes.train_workers()) == 2


def other_number_of_workers(scene: Scene) -> None:
    now = 3 - len(scene.run.workers())
    scene.run.interrupt(scene.rng.choice([signal.SIGINT, signal.SIGKILL]))
    scene.run.type_command(f"scaling.num_workers={now}")


FAULTS = (
    Fault("worker of rank 0 killed", "SIGKILL", kill_rank(0)),
    Fault("worker of rank 1 killed", "SIGKILL; ZeRO-3 in bfloat16", kill_rank(1), ZERO3),
    Fault("all workers killed", "SIGKILL to both at once", kill_all),
    Fault("worker killed while a checkpoint is written", "SIGKILL as its folder has no manifest", kill_while_saving),
    Fault("driver killed", "SIGKILL, the command typed again; ZeRO-3", interrupt_driver(signal.SIGKILL), ZERO3),
    Fault("Ctrl-C", "SIGINT to the driver, the command typed again", interrupt_driver(signal.SIGINT)),
    Fault("worker hangs", "SIGSTOP to a worker; hang_timeout 10 s", stop_worker, more=("scaling.hang_timeout=10",)),
    Fault("node lost", "SIGKILL to all its processes; another joins", lose_node),
    Fault(
        "preemption notice",
        f"node drained through GCS with {NOTICE:g} s to go, gone two steps after the checkpoint; no other checkpoints",
        preempt, SLOW, ("train.checkpoint_every_steps=1000",), last=26,
    ),
    Fault(
        "out of memory", "a worker's address space may not grow (RLIMIT_AS): it fails, or hangs; hang_timeout 20 s",
        limit_memory, more=("scaling.hang_timeout=20",), last=13,
    ),
    Fault(
        "storage full", "the checkpoints' filesystem filled until a save has failed", fill_storage,
        restarts=False, small_storage=True,
    ),
    Fault(
        "storage failing", "a file in the place of the checkpoints' folder until a save has failed", break_storage,
        restarts=False, first=5,
    ),
    Fault("newest checkpoint damaged", "driver killed, one bit flipped", damage_newest(flip_a_byte), first=10),
    Fault("newest checkpoint cut short", "driver killed, a file truncated", damage_newest(cut_short), first=10),
    Fault("newest checkpoint's manifest gone", "driver killed, file removed", damage_newest(lose_manifest), first=10),
    Fault(
        "all checkpoints damaged", "driver killed, a bit flipped in each: refused (exit 2); then restored",
        spoil(flip_a_byte, "none of the checkpoints is whole"), first=6,
    ),
    Fault(
        "all manifests gone", "driver killed, the file removed from each: refused (exit 2); then restored",
        spoil(lose_manifest, "the run's checkpoints are gone"), first=6,
    ),
    Fault(
        "data changed under a run", "a word added to a record, half of the time a worker killed, then the driver: "
        "refused (exit 2); then restored", change_data, first=5,
    ),
    Fault(
        "2, 1, 2 workers in one run", "num_workers [1, 2]: a node lost, another added when one worker trains",
        lose_node_and_add_one_later, LONG, ("scaling.num_workers=[1, 2]", "scaling.resize_interval=5"), last=70,
        tolerance=1e-5,
    ),
    Fault(
        "continued by hand on 1 and 2 workers", "driver stopped, scaling.num_workers changed", other_number_of_workers,
        OTHER_RANKS, tolerance=1e-5,
    ),
)  # fmt: skip
