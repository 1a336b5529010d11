"""The plan of a graph of stages: steps, operations, disk and time, before anything begins."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig, load_config, parse_as
from orpo_ray.costs.device import Cores, Device, Gpus
from orpo_ray.costs.step import Load, Network
from orpo_ray.data.packing import pack
from orpo_ray.data.prepare import prepare
from orpo_ray.modeling.flops import StepFlops
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.paper.plan import Plan, plan_graph, plan_of
from orpo_ray.paper.plan_table import print_plan, rows_of, totals
from orpo_ray.paper.spent import seconds_spent
from orpo_ray.stages.graph import Graph, StageConfig
from orpo_ray.terminal import Console
from orpo_ray.training.source import schedule_of

DEVICES: dict[str, Device] = {"CPU": Cores(1e11, 1e10), "GPU": Gpus()}
TWO_CORES = [(2.0, 0.0)]


@dataclass(frozen=True)
class Place:
    kind: str
    data: str = ""
    size: str = ""
    seed: int | None = None


@dataclass
class Stages:
    graph: Graph
    places: dict[str, Place] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def training(name: str, model: str = "toy", objective: str = "orpo", **more: Any) -> TrainConfig:
    mapping: dict[str, Any] = {
        "name": name, "model": {"name_or_path": model, "dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
        "objective": {"name": objective}, "scaling": {"cpus_per_worker": 1, "use_gpu": False},
        "train": {"global_batch_size": 32, "zero_stage": 0, "max_steps": 100, "eval_every_steps": 50},
    }  # fmt: skip
    for key, section in more.items():
        mapping[key] = {**mapping.get(key, {}), **section}
    return parse_as(TrainConfig, mapping, [], name)


def rolling_out(name: str, model: str, reward: str, **train: Any) -> TrainConfig:
    return training(
        name, model, "ppo", data={"max_prompt_length": 768}, train={"global_batch_size": 32, **train},
        rollouts={
            "rewards": {"reward": reward, "truth": "toy"}, "prompts": 64, "max_tokens": 48, "engine": "transformers",
        },
    )  # fmt: skip


def evaluation(name: str, models: dict[str, str], **more: Any) -> EvaluationConfig:
    mapping: dict[str, Any] = {
        "name": name, "models": models, "prompts": {"source": "toy-test", "limit": 50},
        "reward_models": {"reward": "./runs/reward", "truth": "toy"}, "sampling": {"max_tokens": 48, "rounds": 3},
        "generation": {"engine": "transformers"}, **more,
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], name)


def configs() -> dict[str, StageConfig]:
    swept = training("sweep", "./runs/base").model_dump(mode="json", by_alias=True)
    del swept["name"], swept["storage"]
    sweep = {
        "name": "sweep", "train": swept, "space": {"objective.lambda": "grid(0.1, 0.5, 1.0)"},
        "searcher": "grid", "scheduler": "none",
    }  # fmt: skip
    return {
        "base": training("base", objective="sft"),
        "sft": training("sft", "./runs/base", "sft"),
        "reward": training("reward", "./runs/sft", "reward"),
        "orpo": training("orpo", "./runs/base"),
        "dpo": training("dpo", "./runs/sft", "dpo"),
        "ppo": rolling_out("ppo", "./runs/sft", "./runs/reward", max_steps=16, eval_every_steps=16),
        "sweep": parse_as(SweepConfig, sweep, [], "sweep"),
        "wins": evaluation("wins", {kind: f"./runs/{kind}" for kind in ("sft", "dpo", "ppo", "orpo")}),
    }  # fmt: skip


def planned(
    configs: dict[str, StageConfig], done: tuple[str, ...] = (), places: dict[str, Place] | None = None
) -> Plan:
    return plan_of(Stages(Graph(configs), places or {}), done, nodes=TWO_CORES, devices=DEVICES)


def printed(plan: Plan) -> str:
    told = io.StringIO()
    print_plan(plan, Console(file=told, width=200))
    return told.getvalue()


@pytest.mark.parametrize(
    "config",
    [
        training("epochs", train={"max_steps": None, "epochs": 2}),
        training("limited", data={"limit": 321}, train={"max_steps": None}),
        training("held-out", data={"eval": None, "eval_fraction": 0.2}, train={"max_steps": None}),
        rolling_out("rollouts", "toy", "./elsewhere", max_steps=None, epochs=1),
    ],
    ids=lambda config: config.name,
)
def test_steps_are_those_of_the_run(config: TrainConfig) -> None:
    plan = planned({"run": config})
    data = prepare(config, load_tokenizer(config.model))
    assert plan.stages["run"].work.steps == schedule_of(config, data.train).total_steps


def test_operations_are_those_that_the_trainer_counts() -> None:
    run = training("orpo")
    policy, data = load_policy(run.model, seed=0), prepare(run, load_tokenizer(run.model)).train
    lengths = data.lengths()
    packed = pack([data.pair(i) for i in range(64)], score_prompts=True)
    load = Load.of(lengths[:64])
    assert load.flops(Network.of(policy)) == pytest.approx(StepFlops.of(policy)(packed), rel=1e-9)
    whole = Load.of(lengths).flops(Network.of(policy)) / len(lengths)  # of a pair
    work = planned({"orpo": run}).stages["orpo"].work
    assert work.flops == pytest.approx(100 * 32 * whole, rel=1e-6)


def test_a_model_that_another_stage_makes_has_its_size() -> None:
    plan = planned(configs())
    assert all(stage.seconds and stage.work.disk for stage in plan.stages.values())
    works = {label: stage.work for label, stage in plan.stages.items()}
    assert works["sft"].flops == works["base"].flops  # two sources, of the same requests and answers
    assert works["orpo"].seconds > works["sft"].seconds  # type: ignore[operator]
    assert works["dpo"].seconds > works["orpo"].seconds  # type: ignore[operator]  # a reference reads all pairs once
    assert works["reward"].flops < works["dpo"].flops  # type: ignore[operator]
    assert works["sweep"].steps == 3 * 100
    assert works["sweep"].flops == pytest.approx(3 * works["orpo"].flops)  # type: ignore[operator]


def test_disk_is_that_of_finished_runs() -> None:
    """What `orpo-ray train` left of each with one worker, counted by `du -sb`."""
    files = Path(__file__).parents[2] / "configs"
    made: dict[str, StageConfig] = {
        "base": load_config(files / "toy-base.yaml", ["scaling.num_workers=1"]),
        "sft": load_config(files / "toy-sft.yaml", ["model.name_or_path=./runs/toy-base", "train.max_steps=100"]),
    }
    found = {label: stage.work.disk for label, stage in planned(made).stages.items()}
    assert found == {"base": pytest.approx(29_098_256, rel=0.02), "sft": pytest.approx(16_719_825, rel=0.02)}


def test_what_is_on_the_hub_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = {"train": "Anthropic/hh-rlhf", "eval": "Anthropic/hh-rlhf", "max_length": 1024, "max_prompt_length": 768}
    many = {"max_steps": None, "global_batch_size": 16}
    on_gpus = {"num_workers": 4, "use_gpu": True, "cpus_per_worker": "auto"}
    made: dict[str, StageConfig] = {
        "small": training("small", "facebook/opt-125m", data=hub, train=many, scaling=on_gpus),
        "large": training("large", "facebook/opt-1.3b", data=hub, train=many, scaling=on_gpus),
        "another": training("another", "someone/unknown-model", data=hub, train=many, scaling=on_gpus),
    }
    plan = plan_graph(Graph(made), {})
    small, large, another = plan.stages.values()
    assert small.work.steps == large.work.steps == 160_800 // 16
    assert 5 < large.work.flops / small.work.flops < 15  # type: ignore[operator]
    assert large.work.disk == pytest.approx((12 + 4) * 1.316e9, rel=0.01)  # a checkpoint, a float32 model
    assert small.on_gpus and small.room.gpus == 4 and plan.assumed_nodes
    assert another.seconds is None and another.work.steps == small.work.steps
    assert [note for note in plan.notes if "published" in note]
    assert [note for note in plan.notes if "someone/unknown-model" in note]
    assert "+ ?" in printed(plan) and "H100" in printed(plan)


def test_time_is_that_of_as_many_as_the_cluster_holds() -> None:
    made: dict[str, StageConfig] = {f"run-{i}": training(f"run-{i}") for i in range(4)}
    plan = planned(made)
    one = plan.stages["run-0"].seconds or 0.0
    assert plan.elapsed() == pytest.approx(2 * one)  # two of one core each at a time
    assert plan.elapsed(done=("run-0", "run-1")) == pytest.approx(one)
    assert plan.critical_path() == (["run-0"], pytest.approx(one))
    chain = planned({"base": training("base"), "sft": training("sft", "./runs/base"), "other": training("other")})
    assert chain.elapsed() == pytest.approx(2 * one, rel=0.01)
    assert chain.critical_path()[0] == ["base", "sft"]
    assert chain.usual.keys() == chain.stages.keys()


def test_a_hundred_stages_are_a_few_rows() -> None:
    made: dict[str, StageConfig] = {}
    places = {}
    for kind in ("sft", "orpo"):
        for size in ("2x64", "5x128"):
            for seed in range(25):
                label = f"toy-{size}-{kind}-{seed}"
                made[label] = training(label, objective=kind)
                places[label] = Place(kind, "toy", size, seed)
    plan = planned(made, tuple(made)[:3], places)
    rows = rows_of(plan)
    assert [(row.kind, row.sizes, len(row.seeds), len(row.stages)) for row in rows] == [
        ("sft", ["2x64", "5x128"], 25, 50), ("orpo", ["2x64", "5x128"], 25, 50),
    ]  # fmt: skip
    assert rows[0].done == 3 and len(plan.left) == 97
    assert len(printed(plan).splitlines()) < 15
    assert any(line.startswith("left    97 stages") for line in totals(plan))


def test_stages_that_are_done_are_shown_with_what_they_took() -> None:
    made = {"base": training("base"), "wins": evaluation("wins", {"base": "./runs/base"})}
    graph = Graph(made)
    run, wins = graph.stages["base"].folder, graph.stages["wins"].folder
    for folder in (run, wins):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    (run / "summary.json").write_text(json.dumps({"seconds": 120.0}))
    (wins / "winrates.json").write_text("{}")
    assert seconds_spent(graph.stages["base"]) == 120.0
    assert seconds_spent(graph.stages["wins"]) == pytest.approx(0.0, abs=2.0)
    (run / "report.html").write_text("drawn again, later")
    plan = planned(made, ("base",))
    assert plan.stages["base"].spent == 120.0 and plan.stages["wins"].spent is None
    told = printed(plan)
    assert "took" in told and "120" in told.replace("2 min", "120")
    (run / "summary.json").write_text("damaged")
    assert planned(made, ("base",)).stages["base"].spent is None


def test_a_plan_starts_nothing() -> None:
    """Neither Ray nor an engine is as much as imported, and no folder of a stage is made."""
    code = """
import sys
from test_paper_plan import configs, planned, printed
told = printed(planned(configs()))
assert "wins" in told
heavy = {"ray", "vllm", "deepspeed"} & set(sys.modules)
assert not heavy, heavy
from pathlib import Path
assert [path.name for path in Path("runs").iterdir()] == [".cache"], list(Path("runs").iterdir())
"""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    own = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    subprocess.run([sys.executable, "-c", own], check=True)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_more_work_takes_longer_and_more_devices_less(device: Device) -> None:
    from orpo_ray.costs.device import Shape

    with torch.device("meta"):
        net = Network(1_300_000_000, 24, 2048, 50272, 7.2e9, 6.2e8, 590_000.0)
    load = Load.of(np.tile([400, 200, 200], (256, 1)))
    one, four = Shape(1, 16), Shape(4, 4, 2)
    more = Load(*(2 * each for each in load))
    assert device.train(net, more, net.parameters, Shape(1, 32)) > 1.9 * device.forward(net, more, Shape(1, 32))
    assert device.train(net, load, net.parameters, four) < device.train(net, load, net.parameters, one)
    assert device.write(net, 2000, 200, 256, 100, one) > 1.5 * device.write(net, 1000, 200, 256, 100, one) / 2
    assert device.write(net, 2000, 200, 256, 100, four) < device.write(net, 2000, 200, 256, 100, one)
