"""A benchmark is a file of defaults: those that come along, a person's own, and what is said where one is misnamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.config import EvaluationConfig, ScoreConfig, load_any, load_as
from orpo_ray.config.benchmark_files import SHIPPED
from orpo_ray.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
JUDGES = {"j": {"kind": "vllm", "model": "runs/j"}}
OF_EVALUATIONS = ("alpaca-eval-1", "alpaca-eval-2", "ifeval", "mt-bench")


def written(folder: Path, **content: Any) -> Path:
    file = folder / "e.yaml"
    file.write_text(yaml.safe_dump({"name": "e", "models": {"a": "runs/a"}, "judges": JUDGES, **content}))
    return file


def test_these_come_along_and_lie_in_configs_too() -> None:
    assert {path.stem for path in SHIPPED.glob("*")} == {*OF_EVALUATIONS, "reward-bench"}
    assert (REPOSITORY / "configs" / "benchmarks").resolve() == SHIPPED
    declared = (REPOSITORY / "pyproject.toml").read_text()
    assert '"config/benchmarks/*"' in declared, "they would not be installed"


@pytest.mark.parametrize("name", OF_EVALUATIONS)
def test_an_evaluation_needs_nothing_more_than_a_benchmark_models_and_a_judge(name: str, tmp_path: Path) -> None:
    config = load_as(EvaluationConfig, written(tmp_path, benchmark=name))
    assert config.measures == (name,)
    assert "a" in config.models and config.sampling.rounds == 1
    again = EvaluationConfig.model_validate(config.model_dump())
    assert again == config
    by_path = load_as(EvaluationConfig, written(tmp_path, benchmark=str(SHIPPED / f"{name}.yaml")))
    assert by_path == config.model_copy(update={"benchmark": by_path.benchmark})


def test_mt_bench_is_asked_as_its_own_code_asks() -> None:
    mapping = yaml.safe_load((SHIPPED / "mt-bench.yaml").read_text())
    config = EvaluationConfig.model_validate({**mapping, "name": "e", "models": {"a": "x"}, "judges": JUDGES})
    categories = ("writing", "roleplay", "extraction", "math", "coding", "reasoning", "stem", "humanities")
    drawn = {name: config.sampling.of(name) for name in categories}
    assert [each.temperature for each in drawn.values()] == [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1]
    assert {each.max_tokens for each in drawn.values()} == {1024}
    assert (config.prompts.turns, config.prompts.category) == (2, "category")


def test_own_keys_win_and_labels_are_replaced_whole(tmp_path: Path) -> None:
    file = written(
        tmp_path, benchmark="mt-bench", prompts={"source": "mine.jsonl"},
        sampling={"rounds": 2, "by_category": {"math": {"temperature": 0.5}}},
    )  # fmt: skip
    config = load_as(EvaluationConfig, file, ["sampling.max_tokens=7"])
    assert (config.prompts.source, config.prompts.turns) == ("mine.jsonl", 2)
    assert (config.sampling.rounds, config.sampling.max_tokens) == (2, 7)
    assert config.sampling.of("math").temperature == 0.5 and config.sampling.of("stem").temperature == 0.1
    reference = {"gpt4_1106_preview": {"path": "runs/other", "dtype": "float32"}}
    both = {**reference, "a": "runs/a"}
    other = load_as(EvaluationConfig, written(tmp_path, benchmark="alpaca-eval-2", models=both))
    assert other.model_dump()["models"] == {
        "a": "runs/a", "gpt4_1106_preview": {**reference["gpt4_1106_preview"], "chat_template": None}
    }


def test_one_s_own_benchmark_is_one_more_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("prompts: {source: toy-test}\nreward_models: {r: toy}\nsampling: {temperature: 0}\n")
    config = load_as(EvaluationConfig, written(tmp_path, benchmark=str(own)))
    assert (config.prompts.source, config.reward_models, config.sampling.temperature) == ("toy-test", {"r": "toy"}, 0)
    alone = load_as(EvaluationConfig, own, ["name=e", "models={a: runs/a}", f"judges={JUDGES}"])
    assert alone == config.model_copy(update={"benchmark": None})


def test_scores_have_benchmarks_too(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nbenchmark: reward-bench\nreward_models: {r: runs/r}\n")
    config = load_as(ScoreConfig, file)
    assert (config.prompts.source, config.prompts.split, config.subset) == ("allenai/reward-bench-2", "test", "subset")
    assert isinstance(load_any(file), ScoreConfig)


@pytest.mark.parametrize("name", OF_EVALUATIONS)
def test_a_benchmark_alone_says_what_it_is(name: str) -> None:
    file = REPOSITORY / "configs" / "benchmarks" / f"{name}.yaml"
    for load in (lambda: load_as(EvaluationConfig, file), lambda: load_any(file)):
        with pytest.raises(UserError, match=rf"{name}\.yaml: has no name, so it is a benchmark, .*`benchmark: .*`"):
            load()
    named = load_as(EvaluationConfig, file, ["name=e", "models.a=runs/a", f"judges={JUDGES}"])
    assert named.measures == (name,)


WRONG = {
    "misspelt": ("mt-bnech", r"e\.yaml: benchmark: 'mt-bnech' is no file, .*; did you mean mt-bench\?"),
    "no such file": ("/nowhere/at.yaml", r"e\.yaml: benchmark: '/nowhere/at\.yaml' is no file"),
    "no text": (3, r"e\.yaml: benchmark: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_benchmark_that_is_none(name: str, tmp_path: Path) -> None:
    named, told = WRONG[name]
    with pytest.raises(UserError, match=told):
        load_as(EvaluationConfig, written(tmp_path, benchmark=named, reward_models={"r": "toy"}))


@pytest.mark.parametrize("key", ["name: x", "benchmark: mt-bench"])
def test_a_benchmark_has_no_name_and_no_benchmark(key: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"{key}\nprompts: {{source: toy-test}}\n")
    with pytest.raises(UserError, match=rf"own\.yaml has the key {key.split(':')[0]}, which no benchmark has"):
        load_as(EvaluationConfig, written(tmp_path, benchmark=str(own)))
