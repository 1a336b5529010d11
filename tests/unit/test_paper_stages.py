"""The stages of the paper remade: which, what each needs, and that a change redoes what depends on it alone."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig
from orpo_ray.config.identity import of_one_run
from orpo_ray.config.paper import load_paper
from orpo_ray.errors import UserError
from orpo_ray.paper import run
from orpo_ray.paper.done import finished, forget_done, is_of_others, keep_done
from orpo_ray.paper.plan import Plan
from orpo_ray.paper.stages import PaperStages, Place, read_stages
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console
from orpo_ray.tuning.folder import SweepFolder

CONFIG: dict[str, Any] = {
    "name": "p",
    "seeds": [7, 8],
    "run": {"data": {"max_length": 128, "max_prompt_length": 64}, "train": {"max_steps": 20}},
    "methods": {
        "base": {"model": {"name_or_path": "<base>"}, "data": {"train": "toy-base"}, "objective": {"name": "sft"}},
        "sft": {"model": {"name_or_path": "<base>"}, "objective": {"name": "sft"}},
        "dpo": {"model": {"name_or_path": "<sft>"}, "objective": {"name": "dpo"}},
        "ppo": {
            "model": {"name_or_path": "<sft>"}, "objective": {"name": "ppo"},
            "rollouts": {"rewards": {"reward": "<reward>"}, "max_tokens": 48},
        },
        "orpo": {"model": {"name_or_path": "<base>"}, "objective": {"name": "orpo", "lambda": 1.0}},
        "probability_ratio": {"model": {"name_or_path": "<base>"}, "objective": {"name": "probability_ratio"}},
        "reward": {"model": {"name_or_path": "<sft>"}, "objective": {"name": "reward"}},
        "judge": {"model": {"name_or_path": "<sft>"}, "objective": {"name": "reward"}},
    },
    "sizes": {
        "s": {"base": "toy", "paper": "125M"},
        "l": {"base": "toy", "paper": "1.3B", "run": {"optim": {"lr": 1.0e-3}}},
    },
    "data": {
        "hh": {
            "paper": "hh", "title": "one", "run": {"data": {"train": "toy", "eval": "toy-test"}},
            "evaluation": {"prompts": {"source": "toy-test"}},
        },
        "other": {
            "title": "two", "run": {"data": {"train": "toy", "eval": "toy-test"}, "optim": {"lr": 3.0e-3}},
            "evaluation": {"prompts": {"source": "toy-test", "limit": 9}},
        },
    },
    "reward": "s",
    "judge": "l",
    "figures": {"data": "hh", "size": "s"},
    "sweep": {"space": {"objective.lambda": "grid(0.1, 1.0)"}, "searcher": "grid", "scheduler": "none"},
    "evaluation": {"sampling": {"max_tokens": 48}, "reward_models": {"truth": "toy"}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("paper.yaml")
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return path


def stages(*overrides: str) -> PaperStages:
    return PaperStages(load_paper("paper.yaml", list(overrides)), "paper.yaml")


def changed(*overrides: str) -> set[str]:
    """Labels of the stages that are made again where these settings change."""
    before, after = stages(), stages(*overrides)
    assert before.places == after.places
    return {label for label, place in before.places.items() if before.digests[place] != after.digests[place]}


def policies(kinds: str, data: str = "hh other", size: str = "s l", seed: str = "7 8") -> set[str]:
    return {
        f"{d}-{s}-{kind}-{n}"
        for kind in kinds.split() for d in data.split() for s in size.split() for n in seed.split()
    }  # fmt: skip


def test_every_method_is_trained_for_each_data_set_size_and_seed() -> None:
    found = stages()
    once = {"s-base", "l-base", "hh-s-sweep", *(f"{d}-{of}" for d in ("hh", "other") for of in ("s-reward", "l-judge"))}
    ratio = policies("probability_ratio", "hh", "s")
    assert set(found.places) == once | ratio | policies("sft dpo ppo orpo winrate")
    kinds = {label: type(stage.config) for label, stage in found.graph.stages.items()}
    assert {label for label, kind in kinds.items() if kind is EvaluationConfig} == policies("winrate")
    assert {label for label, kind in kinds.items() if kind is SweepConfig} == {"hh-s-sweep"}


def test_what_each_begins_from_and_is_judged_by() -> None:
    needs = {stage.label: set(stage.needs) for stage in stages().graph}
    assert needs["hh-l-dpo-8"] == {"hh-l-sft-8"}
    assert needs["hh-l-ppo-8"] == {"hh-l-sft-8", "hh-s-reward"}
    assert needs["hh-l-orpo-8"] == {"l-base"}
    assert needs["hh-s-sweep"] == {"s-base"}
    assert needs["other-l-judge"] == {"other-l-sft-7"}  # of the first seed
    assert needs["other-s-winrate-8"] == policies("sft dpo ppo orpo", "other", "s", "8") | {"other-l-judge"}


def test_a_stages_settings_are_those_of_all_over_each_other() -> None:
    found = stages("sizes.l.methods={orpo: {optim: {lr: 5e-4}}}", "data.other.methods={dpo: {train: {max_steps: 9}}}")
    rates = {
        (kind, data, size): run.optim.lr
        for kind in ("sft", "orpo") for data in ("hh", "other") for size in ("s", "l")
        if isinstance(run := found.configs[Place(kind, data, size, 8)], TrainConfig)
    }  # fmt: skip
    default = TrainConfig.model_validate(
        {"name": "x", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    ).optim.lr
    assert rates == {
        ("sft", "hh", "s"): default, ("sft", "hh", "l"): 1e-3, ("sft", "other", "s"): 3e-3, ("sft", "other", "l"): 1e-3,
        ("orpo", "hh", "s"): default, ("orpo", "hh", "l"): 5e-4, ("orpo", "other", "s"): 3e-3,
        ("orpo", "other", "l"): 5e-4,
    }  # fmt: skip
    dpo = found.configs[Place("dpo", "other", "s", 7)]
    assert isinstance(dpo, TrainConfig) and (dpo.train.max_steps, dpo.seed, dpo.data.max_length) == (9, 7, 128)
    evaluation = found.configs[Place("winrate", "other", "s", 7)]
    assert isinstance(evaluation, EvaluationConfig)
    assert (evaluation.prompts.limit, evaluation.sampling.max_tokens) == (9, 48)
    assert list(evaluation.reward_models) == ["judge", "truth"] and list(evaluation.models) == [
        "sft",
        "dpo",
        "ppo",
        "orpo",
    ]


def test_first_comes_the_first_seed_with_its_evaluations() -> None:
    order = list(stages().graph.stages)
    assert max(map(order.index, policies("winrate", seed="7"))) < min(map(order.index, policies("orpo", seed="8")))


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("methods.dpo.objective.beta=0.2", policies("dpo winrate")),
        ("methods.judge.optim={lr: 1e-4}", {"hh-l-judge", "other-l-judge"} | policies("winrate")),
        ("methods.sft.optim={weight_decay: 0.1}",
            policies("sft dpo ppo winrate") | {f"{d}-{m}" for d in ("hh", "other") for m in ("s-reward", "l-judge")}),
        ("sizes.l.methods={orpo: {optim: {weight_decay: 0.1}}}", policies("orpo winrate", size="l")),
        ("data.other.run.optim.lr=0.01", policies("sft dpo orpo", "other", "s") | policies("ppo winrate", "other")
            | {"other-s-reward"}),
        ("sweep.seed=4", {"hh-s-sweep"}),
        ("evaluation.sampling.max_tokens=32", policies("winrate")),
        ("data.hh.evaluation.prompts.limit=5", policies("winrate", "hh")),
        ("run.scaling={num_workers: 2}", set()),  # how fast, and not what
        ("storage.path=elsewhere", set()),
        ("sizes.s.base=other", {"s-base", "hh-s-sweep", "hh-s-reward", "other-s-reward"}
            | policies("probability_ratio", "hh", "s") | policies("sft dpo orpo", size="s") | policies("ppo winrate")),
    ],
)  # fmt: skip
def test_a_change_redoes_what_depends_on_it_and_nothing_else(override: str, again: set[str]) -> None:
    assert changed(override) == again


def test_a_base_is_trained_by_whatever_it_says_and_text_with_brackets_is_text() -> None:
    template = "methods.base.data.chat_template='<|user|>{{ messages[0].content }}'"
    found = stages("methods.base.objective={name: orpo}", template).configs[Place("base", size="s")]
    assert isinstance(found, TrainConfig) and found.objective.name == "orpo"


def test_no_reward_model_beside_the_judge() -> None:
    found = stages("evaluation.reward_models=null").configs[Place("winrate", "hh", "s", 7)]
    assert isinstance(found, EvaluationConfig) and list(found.reward_models) == ["judge"]


def test_another_seed_adds_stages_and_redoes_none() -> None:
    before, after = stages(), stages("seeds=[7, 8, 9]")
    assert {label: before.digests[place] for label, place in before.places.items()}.items() <= {
        label: after.digests[place] for label, place in after.places.items()
    }.items()
    assert set(after.places) - set(before.places) == policies("sft dpo ppo orpo winrate", seed="9") | policies(
        "probability_ratio", "hh", "s", "9"
    )


def test_other_data_of_the_same_name_are_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"1", mtime=0))
    override = f"data.other.run.data.train={path}"
    before = stages(override).digests
    path.write_bytes(gzip.compress(b"2", mtime=0))
    after = stages(override).digests
    again = {place.label for place in before if before[place] != after[place]}
    assert again == policies("sft dpo ppo orpo winrate", "other") | {"other-s-reward", "other-l-judge"}


def test_other_data_in_a_folder_are_other_runs_and_what_is_not_read_of_it_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("1")
    overrides = [f"data.other.run.data.{key}={folder}" for key in ("train", "eval")]
    overrides.append(f"data.other.evaluation.prompts.source={folder}")
    again: dict[str, set[str]] = {}
    for name, text in {"train.jsonl": "2", "README.md": "2", "test.jsonl": "2"}.items():
        before = stages(*overrides).digests
        (folder / name).write_text(text)
        after = stages(*overrides).digests
        again[name] = {place.label for place in before if before[place] != after[place]}
    everything = policies("sft dpo ppo orpo winrate", "other") | {"other-s-reward", "other-l-judge"}
    assert again == {"train.jsonl": everything, "README.md": set(), "test.jsonl": everything}


@pytest.mark.parametrize(
    "key", ["judging.prompt", "judging.references", "leaderboard.difficulty", "leaderboard.published", "models.x"]
)
def test_a_benchmark_is_another_by_each_file_that_it_is_given(tmp_path: Path, key: str) -> None:
    file = tmp_path / "file.jsonl"
    settings: dict[str, Any] = {"prompts": {"source": "toy-test"}, "reward_models": {"truth": "toy"}}
    section, _, name = key.partition(".")
    settings[section] = {name: str(file)}
    override = f"benchmarks={json.dumps({'b': {'data': 'hh', 'size': 's', 'evaluation': settings}})}"
    found = []
    for text in ("1", "2"):
        file.write_text(text)
        digests = stages(override).digests
        found.append({place.label: digest for place, digest in digests.items()})
    assert {label for label, digest in found[0].items() if found[1][label] != digest} == {"hh-s-b"}


def test_a_stage_is_done_by_what_decided_it() -> None:
    found, label = stages(), "hh-s-dpo-7"
    page, record = found.folder_of(found.places[label]) / "report.html", found.folder / "done" / label
    record.parent.mkdir(parents=True)
    record.write_text(found.digests[found.places[label]])
    assert finished(found) == {}  # its folder is gone
    page.parent.mkdir(parents=True)
    page.touch()
    assert finished(found) == {label: page}
    assert finished(stages("methods.dpo.objective.beta=0.2")) == {}


def done(found: PaperStages, label: str) -> None:
    """As the command leaves a stage that it has carried out."""
    folder = found.folder_of(found.places[label])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(found.graph.stages[label].config.to_yaml())
    (folder / "report.html").touch()
    forget_done(found, ())
    keep_done(found, label)


def test_an_evaluation_that_was_begun_otherwise_since_is_not_done() -> None:
    """Its folder is the same, so what was killed on its way there may have left nothing of what it held."""
    label, other = "hh-s-winrate-7", "evaluation.sampling.rounds=2"
    before, after = stages(), stages(other)
    done(before, label)
    assert set(finished(before)) == {label} and finished(after) == {}
    forget_done(after, [label])  # and is killed, and the setting taken back
    assert finished(before) == {}
    assert is_of_others(before, label)


def test_an_evaluation_whose_own_command_was_given_other_settings_is_not_done() -> None:
    label = "hh-s-winrate-7"
    found = stages()
    done(found, label)
    place = stages("evaluation.sampling.rounds=2").graph.stages[label]
    (place.folder / "config.yaml").write_text(place.config.to_yaml())
    assert finished(found) == {}
    (place.folder / "config.yaml").write_text("")
    assert finished(found) == {}


def test_a_command_that_begins_forgets_what_it_does_again_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before, after = stages(), stages("evaluation.sampling.rounds=2")
    for label in ("hh-s-winrate-7", "hh-s-sft-7"):
        done(before, label)
    monkeypatch.setattr(run, "run_stages", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run_paper(after, Plan(after.graph, {}, [], {}, False), Console())
    assert set(finished(before)) == {"hh-s-sft-7"}


def test_a_papers_folder_is_read_from_anywhere_and_where_it_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, label = stages(), "hh-s-sft-7"
    done(found, label)
    (found.folder / "config.yaml").write_text(found.config.to_yaml())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert set(finished(read_stages(found.folder))) == {label}
    moved = read_stages(found.folder.rename(tmp_path / "moved"))
    assert moved.folder == tmp_path / "moved" and set(finished(moved)) == {label}
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("elsewhere", ["./runs", "{tmp}/runs", "moved", "{tmp}/copied"])
def test_what_was_begun_goes_on_wherever_the_paper_lies(tmp_path: Path, elsewhere: str) -> None:
    """Stages that no record has yet, and what they begin from, learn from and refer to, named by its folders."""
    reference = "methods.dpo.objective.reference=<sft>"
    labels = ("hh-s-sft-7", "hh-s-ppo-7", "hh-s-dpo-7", "hh-s-sweep")
    before = stages("storage.path=runs", reference)
    for label in labels:
        folder = before.graph.stages[label].folder
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(before.graph.stages[label].config.to_yaml())
        run = folder / "trials/000" if label.endswith("sweep") else folder
        run.mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    path = elsewhere.format(tmp=tmp_path)
    if "runs" not in path:
        shutil.copytree("runs", path)
    if path == "moved":
        shutil.rmtree("runs")
    after = stages(f"storage.path={path}", reference)
    for label in labels:
        held, now = before.graph.stages[label].config, after.graph.stages[label].config
        if isinstance(held, TrainConfig) and isinstance(now, TrainConfig):
            assert held.model.name_or_path != now.model.name_or_path and of_one_run(held.digest(), now.digest())
            RunFolder(now.run_dir).open_for(now)
        else:
            assert isinstance(held, SweepConfig) and isinstance(now, SweepConfig)
            SweepFolder(now).open_for(now)
            trials = [SweepFolder(own).training(0, own.first_point) for own in (held, now)]
            assert of_one_run(trials[0].digest(), trials[1].digest())
        assert (after.graph.stages[label].folder / "config.yaml").read_text() == now.to_yaml()


def test_a_begun_stage_that_begins_from_another_is_refused() -> None:
    before, label = stages(), "hh-s-dpo-7"
    own, other = before.graph.stages[label].config, stages("methods.sft.optim={lr: 1e-4}").graph.stages[label].config
    assert isinstance(own, TrainConfig) and isinstance(other, TrainConfig)
    assert not of_one_run(own.digest(), other.model_copy(update={"name": own.name}).digest())
    folder = RunFolder(own.run_dir)
    folder.open_for(own)
    folder.append_metrics({"step": 1, "loss": 3.0})
    with pytest.raises(UserError, match=r"holds a run with other settings \(model.name_or_path\)"):
        folder.open_for(other.model_copy(update={"name": own.name}))


def test_a_papers_folder_whose_files_are_named_from_elsewhere_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}")
    found = stages("run.data.train=pairs.jsonl", "data.hh.run.data.train=pairs.jsonl")
    done(found, "hh-s-sft-7")
    (found.folder / "config.yaml").write_text(found.config.to_yaml())
    assert set(finished(read_stages(found.folder))) == {"hh-s-sft-7"}
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match="hh-s-sft-7 was made of files that are not the same from here"):
        read_stages(found.folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods.dop={}"], "methods.dop"),
        (["methods.dpo.optim={lrr: 1}"], "hh-s-dpo-7: unknown key optim.lrr; did you mean optim.lr?"),
        (["methods.dpo.model.name_or_path=<stf>"], "hh-s-dpo-7: <stf> is no stage that comes before it; the "),
        (["methods.sft.model.name_or_path=<dpo>"], "hh-s-sft-7: <dpo> is no stage that comes before it"),
        (["sizes.s.base=null"], "s-base: <base>: sizes.s.base does not say which"),
        (["judge=m"], "judge: no size is called m: there are s, l"),
        (["reward=null"], "reward: says the size of methods.reward; give both, or neither"),
        (["figures.data=x"], "figures.data: no data set is called x: there are hh, other"),
        (["seeds=[1, 1]"], "seeds: names one twice"),
        (["sizes.l.paper=125M"], "sizes: two are held against the paper's 125M"),
        (["evaluation.models={a: toy}"], "evaluation.models: are the methods; leave it out"),
        (["evaluation.reward_models=[toy]"], "hh-s-winrate-7: reward_models: should be a mapping of keys"),
        (["sweep.train={}"], "sweep.train: is the paper's to say; leave it out"),
        (["sweep.space={objective.name: 'grid(orpo, sft)'}"], "sweep.space.objective.name: is the paper's to say"),
        (["sweep.space={objective.lamda: 'grid(1, 2)'}"], "sweep: "),
        (["data.hh.evaluation.prompts.limt=3"], "hh-s-winrate-7: unknown key prompts.limt; did you mean "),
        (["run.seed=3"], "run.seed: is the paper's to say; leave it out"),
        (["methods.orpo.name=x"], "methods.orpo.name: is the paper's to say; leave it out"),
        (["sizes.s.run.storage.path=x"], "sizes.s.run.storage: is the paper's to say; leave it out"),
        (["data.hh.methods={dpo: {seed: 3}}"], "data.hh.methods.dpo.seed: is the paper's to say; leave it out"),
        (["evaluation.name=x"], "evaluation.name: is the paper's to say; leave it out"),
        (["sizes.l.evaluation={storage: {path: x}}"], "sizes.l.evaluation.storage: is the paper's to say; leave it"),
        (["data.hh.evaluation.models={a: toy}"], "data.hh.evaluation.models: are the methods; leave it out"),
        (["benchmarks={b: {data: hh, size: s, evaluation: {name: x}}}"], "benchmarks.b.evaluation.name: is the paper"),
        (["methods.orpo.objective={name: sft}"],
         "hh-s-orpo-7: objective.name: is sft; methods.orpo trains by orpo"),
        (["methods.judge.objective={name: sft}"], "hh-l-judge: objective.name: is sft; methods.judge trains by reward"),
        (["sizes.l.methods={dpo: {objective: {name: orpo}}}"], "hh-l-dpo-7: objective.name: is orpo; methods.dpo tra"),
        (["data.other.run.objective={name: dpo}", "methods.sft.objective={}"],
         "hh-s-sft-7: objective.name: is orpo; methods.sft trains by sft"),
        (["methods.dpo.model.name_or_path='<sft'"], "hh-s-dpo-7: <sft: lacks a bracket; the stage's folder is <sft>"),
        (["methods.dpo.model.name_or_path='sft>'"], "hh-s-dpo-7: sft>: lacks a bracket; the stage's folder is <sft>"),
        (["benchmarks={b: {data: hh, size: x, evaluation: {}}}"], "benchmarks.b.size: no size is called x"),
        (["benchmarks.winrate-7={data: hh, size: s, evaluation: {prompts: {source: toy}, reward_models: {t: toy}}}"],
         "two stages would be called hh-s-winrate-7"),
        (["data.hh.evaluation.reward_models={x: toy, x-seeds: toy}"],
         "two tables would be called table-2-by-x-seeds; rename a judge or data set"),
    ],
)  # fmt: skip
def test_a_mistake_anywhere_is_told_first(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        stages(*overrides)
    assert str(error.value).startswith("paper.yaml: ") and message in str(error.value) and "\n" not in str(error.value)
