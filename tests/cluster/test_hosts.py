"""Several real hosts, as far as one machine has them: each its own network, disk and home, and one folder of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import wait_for
from hosts import REPOSITORY, Host, Hosts, Impossible

from orpo_ray.data.sources import ToySource

STEPS = 80
CUT_AT = 12
RUN = [
    "configs/toy-base.yaml", "name=run", "data.limit=200", "train.global_batch_size=8", f"train.max_steps={STEPS}",
    f"train.eval_every_steps={STEPS}", "train.checkpoint_every_steps=10", "train.zero_stage=2",
    "scaling.cpus_per_worker=1",
]  # fmt: skip
QUICK = [*RUN, "train.max_steps=2", "train.eval_every_steps=2"]
TIMING = {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}
PATIENCE = 300  # seconds: other work may keep the cores


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        made = Hosts()
    except Impossible as why:
        pytest.skip(f"no namespaces as hosts: {why}")
    yield made
    made.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on this machine alone, by two workers."""
    storage = tmp_path_factory.mktemp("alone")
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-m", "orpo_ray.cli", "train", *RUN, f"storage.path={storage}"], cwd=REPOSITORY,
        env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return storage / "run"


@pytest.fixture(scope="module")
def together(hosts: Hosts) -> Path:
    """The run by a worker on each of two hosts that share its folder."""
    code, said = hosts.hosts[0].orpo_ray("train", *RUN, f"storage.path={hosts.shared}/runs", seconds=PATIENCE)
    assert code == 0, said[-3000:]
    return hosts.shared / "runs" / "run"


def lines(run: Path) -> list[dict[str, Any]]:
    """Of its metrics, without timings."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMING} for line in found]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(host: Host, *words: str) -> str:
    """What a command says that ends as one does that is not ours to mend."""
    code, said = host.orpo_ray(*words, seconds=PATIENCE)
    assert code == 2, said[-3000:]
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def sweep_of(storage: Path, *overrides: str) -> dict[str, Any]:
    """Two trials, at the same time where there is room."""
    return {
        "name": "sweep", "train": QUICK[0], "overrides": [*QUICK[2:], *overrides],
        "space": {"optim.lr": "choice(1e-4, 1e-3)"}, "trials": 2, "scheduler": "none",
        "storage": {"path": str(storage)},
    }  # fmt: skip


def test_two_hosts_make_the_model_of_one_machine(alone: Path, together: Path) -> None:
    assert lines(together) == lines(alone)
    assert files(together / "model") == files(alone / "model")
    assert [path.name for path in together.iterdir() if path.name.startswith(".")] == [], "no mark of the driver stays"


def test_storage_that_is_not_shared_is_named_before_training(hosts: Hosts) -> None:
    first, second = hosts.hosts
    said = refused(first, "train", *QUICK, f"storage.path={first.local}/runs")
    assert f"storage.path: {second.name} ({second.address}) does not see what {first.name} ({first.address})" in said
    left = {path.name for path in first.on_disk(first.local / "runs/run").iterdir()}
    assert not left & {"summary.json", "model", "metrics.jsonl"}


@pytest.mark.long
def test_data_that_one_host_alone_has_is_named_with_the_other(hosts: Hosts) -> None:
    """So are models, in the evaluation below."""
    first, second = hosts.hosts
    own = first.local / "pairs.jsonl"
    pairs = islice(ToySource("toy").records(), 40)
    first.on_disk(own).write_text("".join(json.dumps(pair.value) + "\n" for pair in pairs))
    said = refused(first, "train", *QUICK, f"data.train={own}", f"storage.path={hosts.shared}/own")
    assert said.startswith(
        f"orpo-ray: data.train: {own} is there on {first.name} ({first.address}), and not on {second.name}"
    )


@pytest.mark.long
def test_a_sweep_of_two_hosts(hosts: Hosts) -> None:
    first, second = hosts.hosts
    file = hosts.shared / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_of(first.local / "runs", "scaling.num_workers=1")))
    said = refused(first, "sweep", str(file))
    assert f"storage.path: {second.name} ({second.address}) does not see what" in said
    file.write_text(yaml.safe_dump(sweep_of(hosts.shared / "runs", "scaling.num_workers=1")))
    code, said = first.orpo_ray("sweep", str(file), seconds=PATIENCE)
    assert code == 0, said[-3000:]
    trials = list((hosts.shared / "runs/sweep").glob("trials/*/summary.json"))
    assert len(trials) == 2 and (hosts.shared / "runs/sweep/best.yaml").is_file()


@pytest.mark.long
def test_workers_that_no_host_can_hold_are_told_while_they_wait(hosts: Hosts) -> None:
    """Each host has a CPU, so a worker of two has no place, though the cluster has two. Both commands wait at once."""
    storage, wide = hosts.shared / "wide", ["scaling.num_workers=1", "scaling.cpus_per_worker=2"]
    storage.mkdir()
    file = storage / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_of(storage, *wide)))
    words = {"train": [*QUICK, *wide, f"storage.path={storage}"], "sweep": [str(file)]}
    told = "for want of room: 1 worker (2 CPUs each); the largest of 2 nodes has 1 CPU, so no node can hold that"
    drivers = {
        storage / f"{command}.log": host.start(
            sys.executable, "-m", "orpo_ray.cli", command, *own, log=storage / f"{command}.log"
        )
        for host, (command, own) in zip(hosts.hosts, words.items(), strict=True)
    }
    try:
        for log in drivers:
            wait_for(lambda log=log: told in log.read_text(), f"{log.name} to say it", PATIENCE)  # type: ignore[misc]
        assert [driver.poll() for driver in drivers.values()] == [None, None]
    finally:
        for driver in drivers.values():
            Host.stop(driver)


@pytest.mark.long
def test_an_evaluation_on_two_hosts(hosts: Hosts, together: Path) -> None:
    first, second = hosts.hosts
    file = hosts.shared / "evaluation.yaml"

    def write(model: Path) -> None:
        file.write_text(yaml.safe_dump({
            "name": "evaluation", "models": {"one": str(model)}, "embedder": None,
            "prompts": {"source": "toy-test", "limit": 4}, "reward_models": {"truth": "toy"},
            "sampling": {"max_tokens": 8, "rounds": 1}, "scaling": {"generators": 1, "scorers": 1},
            "storage": {"path": str(hosts.shared / "runs")},
        }))  # fmt: skip

    own = first.local / "to-evaluate"
    first.run("cp", "-r", str(together / "model"), str(own))
    write(own)
    said = refused(first, "evaluate", str(file))
    assert said.startswith(f"orpo-ray: models.one: {own} is there on {first.name} ({first.address}), and not on")
    second.run("cp", "-r", str(together / "model"), str(own))
    weights = second.on_disk(own / "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    said = refused(first, "evaluate", str(file))
    assert said.startswith(f"orpo-ray: models.one: {own} is not the same on {first.name} ({first.address}) and on")
    write(together)
    code, said = first.orpo_ray("evaluate", str(file), seconds=PATIENCE)
    assert code == 0, said[-3000:]
    assert json.loads((hosts.shared / "runs/evaluation/winrates.json").read_text())["prompts"] == 4


@pytest.mark.long
def test_a_cut_link_names_both_hosts_and_changes_no_byte(hosts: Hosts, alone: Path) -> None:
    """The last of these tests, for the second host is started anew."""
    first, second = hosts.hosts
    storage, log = hosts.shared / "cut", hosts.shared / "cut.log"
    driver = first.start(sys.executable, "-m", "orpo_ray.cli", "train", *RUN, f"storage.path={storage}", log=log)
    run = storage / "run"

    def said() -> str:
        assert driver.poll() is None, log.read_text()[-3000:]
        return log.read_text()

    def steps() -> int:
        said()
        return (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").is_file() else 0

    try:
        wait_for(lambda: steps() > CUT_AT, "some steps", PATIENCE)
        hosts.cut(second)
        told = f"the connection between {first.name} ({first.address}) and {second.name} ({second.address}) is lost"
        wait_for(lambda: told in said(), "the driver to notice", PATIENCE)
        hosts.mend(second)
        second.ray_start(1)
        assert driver.wait(PATIENCE) == 0, log.read_text()[-3000:]
    finally:
        first.stop(driver)
    assert lines(run) == lines(alone)
    assert files(run / "model") == files(alone / "model")


@pytest.mark.long
def test_names_that_lead_nowhere_are_told_and_training_does_without(alone: Path) -> None:
    """As Debian and Ubuntu leave them: each host's own name is mapped to 127.0.1.1."""
    try:
        made = Hosts(debian=True)
    except Impossible as why:
        pytest.skip(f"no namespaces as hosts: {why}")
    try:
        first, _ = made.hosts
        where = f"storage.path={made.shared}/runs"
        code, said = first.orpo_ray("doctor", RUN[0], where, seconds=PATIENCE)
        assert "orpo-1, is mapped to 127.0.1.1" in said and "orpo-2, is mapped to 127.0.1.1" in said
        assert code == 0 and "gloo between 2 processes works" in said, said
        code, said = first.orpo_ray("train", *RUN, where, seconds=PATIENCE)
        assert code == 0, said[-3000:]
        assert files(made.shared / "runs/run/model") == files(alone / "model")
    finally:
        made.end()
