"""The graph of stages: what needs what, what runs beside what, and what a failure stops."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.stages import run as run_module
from orpo_ray.stages.graph import Graph, StageConfig
from orpo_ray.stages.progress import Progress
from orpo_ray.stages.room import Room, room_for
from orpo_ray.stages.run import LOG, Outcome, Surroundings, in_a_process
from orpo_ray.storage.mirror import mirrored


def training(name: str, model: str = "toy", **more: Any) -> TrainConfig:
    mapping = {"name": name, "model": {"name_or_path": model}, "data": {"train": "toy"}, **more}
    return parse_as(TrainConfig, mapping, [], name)


def evaluation(name: str, models: dict[str, str], judges: dict[str, str], **more: Any) -> EvaluationConfig:
    mapping = {"name": name, "models": models, "prompts": {"source": "toy-test"}, "reward_models": judges, **more}
    return parse_as(EvaluationConfig, mapping, [], name)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configs() -> dict[str, StageConfig]:
    """Given with the last first."""
    orpo = {"name": "orpo", "lambda": 0.5}
    run = {"model": {"name_or_path": "./runs/base"}, "data": {"train": "toy"}, "objective": orpo}
    swept = {"name": "sweep", "train": run, "space": {"objective.lambda": "choice(0.1, 1.0)"}}
    judges = {"judge": str(Path("runs/judge").resolve())}
    return {
        "who wins": evaluation("e", {"dpo": "runs/dpo", "kept": "./runs/orpo/model"}, judges),
        "dpo": training("dpo", "runs/sft", objective={"name": "dpo"}),
        "judge": training("judge", "runs/sft/checkpoints/step-3", objective={"name": "reward"}),
        "sweep": parse_as(SweepConfig, swept, [], "sweep"),
        "orpo": training("orpo", "runs/base", objective=orpo),
        "sft": training("sft", "runs/base"),
        "base": training("base"),
    }  # fmt: skip


def test_a_stage_needs_those_whose_folders_it_names() -> None:
    graph = Graph(configs())
    assert [stage.label for stage in graph] == ["base", "sweep", "orpo", "sft", "dpo", "judge", "who wins"]
    needs = {stage.label: set(stage.needs) for stage in graph}
    assert needs == {
        "base": set(), "sweep": {"base"}, "orpo": {"base"}, "sft": {"base"}, "dpo": {"sft"}, "judge": {"sft"},
        "who wins": {"dpo", "orpo", "judge"},
    }  # fmt: skip
    assert graph.needed_by("who wins") == {"dpo", "orpo", "judge", "sft", "base"}
    assert graph.behind("sft") == {"dpo", "judge", "who wins"}


def test_names_that_are_no_folders_are_no_needs() -> None:
    graph = Graph({"toy": training("toy"), "other": training("other", "toy")})
    assert all(not stage.needs for stage in graph)


def test_a_link_to_a_folder_is_that_folder() -> None:
    Path("scratch").mkdir()
    Path("runs").symlink_to("scratch")
    for named in ("runs/sft", "scratch/sft", str(Path("runs").absolute() / "sft/model")):
        graph = Graph({"dpo": training("dpo", named), "sft": training("sft")})
        assert graph.stages["dpo"].needs == ("sft",)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": ("x", "toy"), "b": ("x", "toy")}, "b: has the folder of a, "),
        ({"a": ("x", "runs/y"), "b": ("y", "runs/z"), "c": ("z", "runs/x")}, "a, b, c: each waits for what another"),
    ],
)
def test_graphs_that_cannot_be_are_refused(stages: dict[str, tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError) as error:
        Graph({label: training(*of) for label, of in stages.items()})
    assert str(error.value).startswith(message)


def test_what_has_failed_stops_what_needs_it_alone() -> None:
    progress = Progress(Graph(configs()))
    order = []
    while ready := progress.ready(set()):
        order.append(ready[0].label)
        progress.end(ready[0].label, "no room" if ready[0].label == "sft" else "")
    assert order == ["base", "sweep", "orpo", "sft"] and progress.never == ["dpo", "judge", "who wins"]
    assert progress.told() == "1 of 7 stages failed: sft: no room; not begun for it: dpo, judge, who wins"


def test_time_left_goes_by_what_the_stages_before_took() -> None:
    progress = Progress(Graph(configs()))
    assert progress.left(10.0) == ""
    progress.end("base", "")
    assert progress.left(100.0) == "about 10 min left"
    progress.end("orpo", "broken")
    assert progress.left(20.0) == "about 80 s left"  # who wins will never begin
    assert progress.place(1) == "stage 4 of 7"


def test_time_left_goes_by_what_is_usual() -> None:
    usual = {"base": 10.0, "sweep": 0.0, "orpo": 20.0, "sft": 30.0, "dpo": 0.0, "judge": 40.0, "who wins": 5.0}
    progress = Progress(Graph(configs()), {"base"}, usual)
    assert progress.left(1.0) == "about 2 min left"  # 95 s: nothing was done yet
    progress.begin("sft", finished=True)
    progress.end("sft", "")
    assert progress.left(1.0) == "about 65 s left"  # it took no time, which says nothing of the others
    progress.begin("orpo", finished=False)
    progress.end("orpo", "")
    assert progress.left(40.0) == "about 2 min left"  # twice as long as usual: 90 s


ASKED = {"generators": 2, "scorers": 1}
PARTS = ASKED | {"pipeline_parallel": 3}
CPUS, GPUS, WHOLE = [(8.0, 0.0)], [(64.0, 8.0), (64.0, 8.0)], None


@pytest.mark.parametrize(
    ("config", "nodes", "room"),
    [
        (lambda: training("a"), CPUS, WHOLE),  # its workers take what is there
        (lambda: training("a", scaling={"num_workers": 2, "cpus_per_worker": 3}), CPUS, Room(6, 0)),
        (lambda: training("a", scaling={"num_workers": 9, "cpus_per_worker": 1}), CPUS, WHOLE),  # waits, and says so
        (lambda: training("a", scaling={"num_workers": 4}), GPUS, Room(4, 4)),
        (lambda: training("a", scaling={"num_workers": 1, "gpus_per_worker": 0.5}), GPUS, Room(1, 0.5)),
        (lambda: training("a", scaling={"num_workers": 4, "cpus_per_worker": 12}), GPUS, Room(48, 4)),
        (lambda: evaluation("e", {"m": "toy"}, {"t": "toy"}), GPUS, WHOLE),
        (lambda: evaluation("e", {"m": "toy"}, {"t": "toy"}, scaling=ASKED), CPUS, WHOLE),
        (lambda: evaluation("e", {"m": "toy"}, {"t": "toy"}, scaling=ASKED | {"tensor_parallel": 2}), GPUS, Room(3, 5)),
        (lambda: evaluation("e", {"m": "toy"}, {"t": "toy"}, scaling=PARTS), GPUS, Room(3, 7)),
    ],
)  # fmt: skip
def test_room(config: Any, nodes: list[tuple[float, float]], room: Room | None) -> None:
    whole = Room(sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes))
    assert room_for(config(), nodes) == (room or whole)


def test_a_stages_own_process_stands_where_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_A_SERVER", "sk-own")
    monkeypatch.setenv("RAY_OF_THE_COMMAND", "1")
    monkeypatch.setenv("DEVICES", "0,1")
    around = Surroundings.of_here()
    assert "sk-own" not in repr(around) and around.threads == torch.get_num_threads()
    around = replace(around, threads=3)
    monkeypatch.delenv("KEY_OF_A_SERVER")
    monkeypatch.delenv("RAY_OF_THE_COMMAND")
    monkeypatch.setenv("DEVICES", "2")
    (tmp_path / "of the cluster").mkdir()
    monkeypatch.chdir(tmp_path / "of the cluster")
    seen: list[str | None] = []

    def carried_out(config: StageConfig, *_: Any) -> Path:
        seen.extend(os.environ.get(name) for name in ("KEY_OF_A_SERVER", "RAY_OF_THE_COMMAND", "DEVICES"))
        seen.append(str(torch.get_num_threads()))
        return Path("page.html").absolute()

    monkeypatch.setattr(run_module, "carry_out", carried_out)
    threads = torch.get_num_threads()
    try:
        assert in_a_process(training("a"), {}, "stop", around) == Outcome(tmp_path / "page.html")
    finally:
        torch.set_num_threads(threads)
    assert seen == ["sk-own", None, "2", "3"] and (tmp_path / "runs/a" / LOG).is_file()


def test_a_stage_beside_others_goes_on_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (training("a", storage={"path": f"./{at}", "mirror": "./copy"}) for at in ("here", "there"))

    def carried_out(config: StageConfig, curves: Any, console: Any, _: Any) -> Path:
        with mirrored(config.storage, config.name, console):
            kept = config.storage.run_dir(config.name) / "kept.txt"
            kept.write_text("1" if not kept.exists() else kept.read_text() + "2")
            return kept

    monkeypatch.setattr(run_module, "carry_out", carried_out)
    around = Surroundings(str(tmp_path), {}, torch.get_num_threads())
    assert in_a_process(first, {}, "stop", around).failure == ""
    assert in_a_process(second, {}, "stop", around).failure == ""  # another machine
    assert Path("there/a/kept.txt").read_text() == Path("copy/a/kept.txt").read_text() == "12"
    assert "fetching its copy" in Path("there/a", LOG).read_text()
    assert "is the copy of another folder" in in_a_process(first, {}, "stop", around).failure
