"""Which step's model a run keeps: the best by any metric of its evaluations, on pairs that are to choose it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, build, random_pairs
from test_report import make_run
from test_training_pieces import Collect, config

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.config.identity import digest
from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.data import toyworld
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.prepare import prepare
from orpo_ray.data.split import set_apart
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.report import write_report
from orpo_ray.report.runs import read_run
from orpo_ray.status.read import read_status
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import RunFolder, kept_model
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.export import export_model
from orpo_ray.training.loop import State, cost, is_best, run
from orpo_ray.training.measuring import evaluate
from orpo_ray.training.metric_names import evaluation_metrics, require_metrics
from orpo_ray.training.saving import Saver
from orpo_ray.training.source import PairSource

SHORT = (
    "train.global_batch_size=6", "train.epochs=3", "train.eval_every_steps=1", "model.dtype=float32", "optim.lr=2e-2",
    "optim.warmup_steps=0", "optim.schedule=constant",
)  # fmt: skip
OF_DATA = tuple(each.model_fields["name"].default for each in OBJECTIVES if not each.rolls_out)
OF_ROLLOUTS = tuple(each.model_fields["name"].default for each in OBJECTIVES if each.rolls_out)


def trained(*overrides: str, apart: bool = False) -> tuple[State, list[dict[str, Any]]]:
    settings, sink = config(*SHORT, *overrides), Collect()
    engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), settings.optim)
    held_out = random_pairs(24).subset(np.arange(12, 24))
    unseen = random_pairs(24).subset(np.arange(3)) if apart else None
    source = PairSource(engine, settings, random_pairs(12), held_out, unseen)
    state = run(engine, settings, source, sink, State(best_by=settings.train.keep_by))
    return state, sink.lines


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [("eval_loss", "auto", min), ("eval_nll", "auto", min), ("eval_log_odds_ratio", "auto", max),
     ("eval_logps_rejected", "min", min), ("eval_nll", "max", max)],
)  # fmt: skip
def test_the_model_of_the_best_step_by_its_metric_is_kept(metric: str, mode: str, best: Any) -> None:
    state, lines = trained(f"train.keep_by={metric}", f"train.keep_mode={mode}")
    values = {line["step"]: line[metric] for line in lines if line["step"] and metric in line}
    assert state.best_step == best(values, key=lambda step: values[step])
    assert state.best_value == values[state.best_step]
    assert (state.best_by, len(set(values.values()))) == (metric, 6)


def test_what_is_kept_by_changes_no_step() -> None:
    """Nor do pairs that choose nothing, whose metrics stand beside the others under a name of their own."""
    plain, by_metric, apart = (trained()[1], trained("train.keep_by=eval_nll")[1], trained(apart=True)[1])

    def told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        clocked = ("second", "memory", "mfu")
        return [{k: v for k, v in line.items() if not any(c in k for c in clocked)} for line in lines]

    assert told(plain) == told(by_metric)
    without = [{k: v for k, v in line.items() if not k.startswith("eval_unseen_")} for line in told(apart)]
    assert without == told(plain)
    unseen = [line for line in apart if "eval_unseen_reward_accuracy" in line]
    assert len(unseen) == 7 and {key.replace("eval_", "eval_unseen_") for key in evaluation_metrics(config().objective)
                                  } <= unseen[0].keys()  # fmt: skip


def test_one_that_is_not_finite_is_never_the_best() -> None:
    settings = config("train.keep_by=eval_reward_accuracy")
    state = State(best_by="eval_reward_accuracy")
    for value in (math.nan, math.inf, None):
        assert not is_best(settings, state, {"eval_reward_accuracy": value})
        assert cost(settings, {"eval_reward_accuracy": value}) is None
    state.best_value = 0.5
    found = [is_best(settings, state, {"eval_reward_accuracy": value}) for value in (0.4, 0.5, 0.6)]
    assert found == [False, False, True]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.keep_by=accuracy"], "train.keep_by: String should match"),
        (["train.keep_by=eval_win_rate"], "keep_by: a win-rate is known when training has gone on"),
        (
            ["train.keep_by=eval_logps_rejected"],
            "keep_mode: is the lowest or the highest eval_logps_rejected",
        ),
        (
            ["train.keep_by=eval_reward_acuracy"],
            "keep_by: eval_reward_acuracy is not known; did you mean eval_reward_accuracy? Else say keep_mode",
        ),
        (["train.keep_by=eval_nl/b"], "did you mean eval_nll?"),
        (["train.keep_by=eval_unseen_nll"], "keep_by: eval_unseen_nll is of the pairs that choose nothing"),
        (["train.keep_by=eval_nll/b"], "train.keep_by: eval_nll/b: no held-out pairs are of b: they are of one source"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        config(*overrides)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", OF_DATA)
def test_every_objective_says_what_its_evaluations_give(name: str) -> None:
    settings = config(f"objective={{name: {name}}}")
    known = evaluation_metrics(settings.objective)
    assert {"eval_loss", "eval_reward_accuracy"} <= {*known}
    require_metrics(settings, known)
    with pytest.raises(UserError, match=rf"eval_acuracy: no evaluation with objective.name={name} gives it; there"):
        require_metrics(settings, ["eval_acuracy"])


def on_rollouts(name: str, *overrides: str) -> TrainConfig:
    rewards = "rollouts={rewards: {truth: toy, short: rules.py:short}, samples: 2, prompts: 128}"
    return config(f"objective={{name: {name}}}", rewards, *overrides)


@pytest.mark.parametrize("name", OF_ROLLOUTS)
def test_rollouts_are_measured_alike_by_every_objective(name: str) -> None:
    """By their reward, and each of several rewards by its label; there is no loss of held-out prompts."""
    settings = on_rollouts(name)
    known = evaluation_metrics(settings.objective)
    assert known == ("eval_reward", "eval_kl", "eval_response_tokens", "eval_share_cut", "eval_entropy")
    assert (settings.train.keep_by, settings.train.keep_direction) == ("eval_reward", "max")
    require_metrics(settings, [*known, "eval_reward/truth", "eval_reward/short", "eval_win_rate"])
    both = random_pairs(6)
    require_metrics(settings, ["eval_reward/truth"], JoinedPairs(("a", "b"), (both, both)))
    for metric, told in (
        ("eval_loss", "no evaluation with objective.name"),
        ("eval_nll", "no evaluation with objective.name"),
        ("eval_reward/other", "rollouts.rewards has no other: there are truth, short"),
        ("eval_kl/truth", "of rollouts only eval_reward is told by its sources"),
    ):
        with pytest.raises(UserError, match=f"{metric}: {told}"):
            require_metrics(settings, [metric])


def test_a_run_on_rollouts_keeps_by_one_of_its_rewards_or_says_that_it_has_it_not() -> None:
    assert on_rollouts("ppo", "train.keep_by=eval_reward/short").train.keep_direction == "max"
    for metric, told in (
        ("eval_reward/other", "has no other: there are truth, short"),
        ("eval_kl/truth", "only eval_r"),
    ):
        with pytest.raises(UserError, match=told):
            on_rollouts("rloo", f"train.keep_by={metric}", "train.keep_mode=min")
    with pytest.raises(UserError, match="eval_reward/truth: no held-out pairs are of truth"):
        config("train.keep_by=eval_reward/truth")


@pytest.mark.parametrize("name", ["orpo", "sft", "cpo", "reward"])
def test_what_is_said_to_be_given_is_given(name: str) -> None:
    """An evaluation has all of it, under the same names."""
    settings = config(f"objective={{name: {name}}}", "model.dtype=float32")
    if name == "reward":
        from orpo_ray.modeling.scorer import load_scorer

        scorer: Any = load_scorer("reward", settings.model, seed=0)
    else:
        scorer = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))
    from orpo_ray.objectives.registry import build_objective

    engine = TorchEngine(scorer.train(), settings.optim)
    line = evaluate(engine, settings, build_objective(settings.objective), random_pairs(12))[0]
    assert {*evaluation_metrics(settings.objective)} <= line.keys()


def test_a_source_without_held_out_pairs_is_told() -> None:
    settings = config("data.train=[{source: toy, name: a}, {source: toy, name: b}]", "train.keep_by=eval_nll/b")
    both = random_pairs(6)
    require_metrics(settings, ["eval_nll/b"], JoinedPairs(("a", "b"), (both, both)))
    with pytest.raises(UserError, match="eval_nll/b: none of the held-out pairs is of b"):
        require_metrics(settings, ["eval_nll/b"], JoinedPairs(("a", "b"), (both, both.subset(np.arange(0)))))


def test_a_run_of_before_is_continued() -> None:
    """At their defaults the new keys are none, and states and manifests that lack them are read as they were meant."""
    assert digest(config().for_a_file()) == digest(
        {**config().for_a_file(), "train": {k: v for k, v in config().for_a_file()["train"].items()
                                            if not k.startswith("keep_")}}
    )  # fmt: skip
    assert digest(config("train.keep_by=eval_nll").for_a_file()) != digest(config().for_a_file())
    state = State.from_json({"step": 3, "best_step": 2, "best_eval_loss": 0.5, "skipped": 0})
    assert (state.best_by, state.best_value) == ("eval_loss", 0.5)
    held = Manifest(3, asdict(state), 3, "c", "d", 0.5, {}).to_json()
    earlier = {k: v for k, v in json.loads(held).items() if k != "cost"} | {"eval_loss": 0.25}
    assert Manifest.from_json(json.dumps(earlier).encode()).cost == 0.25
    assert Manifest.from_json(held.encode()).cost == 0.5


@pytest.mark.parametrize(("by", "best"), [("eval_loss", 2), ("eval_nll", None)])
def test_a_run_whose_metric_changes_begins_to_look_for_the_best(by: str, best: int | None, tmp_path: Path) -> None:
    """Values of two metrics cannot be compared; what is in `model/` stays until a better one by the new comes."""
    from orpo_ray.training.worker import _resume

    engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), config().optim)
    checkpoints, folder = Checkpoints(str(tmp_path / "checkpoints")), RunFolder(tmp_path)
    saver = Saver(checkpoints, engine, newest=1, best=0, warn=pytest.fail)
    saver.begin(Manifest(3, asdict(State(3, 2, 0.5)), 3, "c", "d", 0.5, {}))
    saver.finish()
    settings = config(f"train.keep_by={by}", "resume.allow_changes=[train.keep_by]")
    state, _ = _resume(settings, engine, checkpoints, {"config": "c2", "data": "d", "weights": {}}, folder)
    assert (state.step, state.best_step, state.best_by) == (3, best, by)
    assert folder.events.exists() == (best is None)


def test_the_best_checkpoints_are_those_by_the_metric(tmp_path: Path) -> None:
    """Those of before a change of the metric are none of them: their numbers are of another kind."""
    checkpoints = Checkpoints(str(tmp_path))
    for step, by, found in ((1, "eval_loss", -9.0), (2, "eval_reward_accuracy", -0.9),
                            (3, "eval_reward_accuracy", -0.7), (4, "eval_reward_accuracy", -0.8)):  # fmt: skip
        checkpoints.open(step)
        checkpoints.commit(Manifest(step, asdict(State(step, best_by=by)), step, "c", "d", found, {}))
    checkpoints.retain(newest=1, best=2)
    assert checkpoints.steps() == [4, 2]


def test_folder_card_page_and_status_name_the_metric(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False, train={"keep_by": "eval_reward_accuracy"})
    lines = [{"step": 130, "eval_loss": 5.0, "eval_reward_accuracy": 0.97, "eval_unseen_reward_accuracy": 0.913}]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    found = read_run(folder)
    assert (found.best_step, found.kept_step) == (130, 130)
    page = write_report(folder).read_text()
    assert "Best eval_reward_accuracy" in page and "0.913 on pairs that choose nothing" in page
    assert "The kept model is the one with the highest eval_reward_accuracy." in page
    settings = config("train.keep_by=eval_reward_accuracy")
    model = build(FAMILIES["opt-pre-norm"], NAME)
    export_model(folder / "model", model, model.state_dict(), toyworld.tokenizer(), settings, lines[0], 130)
    assert kept_model(folder / "model") == (130, "highest eval_reward_accuracy")
    assert "(highest eval_reward_accuracy)" in (folder / "model" / "README.md").read_text()
    status = dict(read_status(folder).rows)
    assert "best by eval_reward_accuracy at step 130" in status["held out"]
    assert status["model"] == "model/: step 130, highest eval_reward_accuracy"


# Pairs that choose nothing ------------------------------------------------------------------------------------------


def prepared(tmp_path: Path, **data: Any) -> Any:
    mapping = {
        "name": "apart", "model": {"name_or_path": "toy"}, "storage": {"path": str(tmp_path)},
        "data": {"train": "toy", "max_length": 128, "max_prompt_length": 64, "limit": 60, **data},
    }  # fmt: skip
    settings: TrainConfig = parse_config(mapping, [], "test")
    return prepare(settings, toyworld.tokenizer())


@pytest.mark.parametrize(
    "data",
    [
        {"eval": "toy-test"},
        {"eval_fraction": 0.4},
        {"eval": [{"source": "toy-test", "name": "a", "limit": 30}, {"source": "toy-test", "name": "b", "limit": 50}]},
    ],
)
def test_whole_prompts_are_set_apart(tmp_path: Path, data: dict[str, Any]) -> None:
    whole, apart = prepared(tmp_path, **data), prepared(tmp_path, **data, unseen_fraction=0.3)

    def prompts(pairs: Any) -> list[tuple[int, ...]]:
        return [tuple(pairs.pair(i)[0].tolist()) for i in range(len(pairs))]

    assert whole.unseen is None and whole.digest == apart.digest
    assert prompts(whole.train) == prompts(apart.train)
    choosing, unseen = prompts(apart.eval), prompts(apart.unseen)
    assert sorted([*choosing, *unseen]) == sorted(prompts(whole.eval))
    assert not {*choosing} & {*unseen}
    assert 0.3 <= len(unseen) / len(whole.eval) <= 0.4


def test_prompts_alone_decide_what_is_set_apart() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    apart = set_apart(hashes, 0.5)
    assert apart.sum() == 250
    assert set_apart(hashes[::-1], 0.5)[::-1].tolist() == apart.tolist()
    assert (apart <= set_apart(hashes, 0.7)).all()
    with pytest.raises(UserError, match=r"unseen_fraction: 9 held-out records have 1 different prompts, too few"):
        set_apart(np.full(9, 7, np.uint64), 0.5)
