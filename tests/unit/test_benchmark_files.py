"""A benchmark is a file of defaults: those that come along, a person's own, and what is said where one is misnamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from orpo_ray.config import EvaluationConfig, ScoreConfig, load_any, load_as
from orpo_ray.config.benchmark_files import _BY_NAME, SHIPPED
from orpo_ray.config.section import Section
from orpo_ray.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = {"a": "runs/a", "b": "runs/b"}
JUDGES = {"j": {"kind": "vllm", "model": "runs/j"}}
OF_EVALUATIONS = ("alpaca-eval-1", "alpaca-eval-2", "ifeval", "mt-bench")


def written(folder: Path, **content: Any) -> Path:
    file = folder / "e.yaml"
    file.write_text(yaml.safe_dump({"name": "e", "models": MODELS, "judges": JUDGES, **content}))
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
    other = load_as(EvaluationConfig, written(tmp_path, benchmark="alpaca-eval-2", models={**MODELS, **reference}))
    replaced = {"gpt4_1106_preview": {**reference["gpt4_1106_preview"], "chat_template": None}}
    assert other.model_dump()["models"] == {**MODELS, **replaced}


NAMED = """
prompts: {source: toy-test, category: kind, columns: {prompt: question, chosen: good}, roles: {customer: user}}
models: {theirs: runs/theirs}
reward_models: {r: toy}
judges: {k: {kind: vllm, model: runs/k}}
sampling: {temperature: 0, by_category: {writing: {temperature: 0.7, top_p: 0.5}, stem: {temperature: 0.1}}}
"""
BY_NAME = {  # key: of which there are after nothing of the file's, and after one name of it is left out
    "models": ({"a", "b"}, "theirs"), "reward_models": (set(), "r"), "judges": ({"j"}, "k"),
    "prompts.columns": (set(), "chosen"), "prompts.roles": (set(), "customer"), "sampling.by_category": (set(), "stem"),
}  # fmt: skip


def names_in(config: EvaluationConfig, key: str) -> set[str]:
    found: Any = config.model_dump()
    for part in key.split("."):
        found = found.get(part) or {}
    return set(found)


@pytest.mark.parametrize("key", BY_NAME)
def test_a_mapping_of_names_can_be_emptied_and_a_name_left_out(key: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(NAMED)
    kept, name = BY_NAME[key]
    file = written(tmp_path, benchmark=str(own))
    every = names_in(load_as(EvaluationConfig, file), key)
    assert name in every > kept
    if key not in ("models", "judges"):  # which the file `e.yaml` has its own of
        for nothing in ("{}", "null"):
            assert names_in(load_as(EvaluationConfig, file, [f"{key}={nothing}"]), key) == set()
    assert names_in(load_as(EvaluationConfig, file, [f"{key}.{name}=null"]), key) == every - {name}
    with pytest.raises(UserError, match=rf"{key}(\.nobody|: should say where)"):
        load_as(EvaluationConfig, file, [f"{key}.nobody=null"])


def test_every_mapping_of_names_is_one() -> None:
    """A section's keys are settings; of any other mapping in it `{}` has to mean none."""
    found = set()
    for name, field in EvaluationConfig.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= {f"{name}.{key}" for key, each in inner.model_fields.items() if is_mapping(each.annotation)}
        elif is_mapping(inner):
            found.add(name)
    assert found == set(BY_NAME) == set(_BY_NAME)


def is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(is_mapping, get_args(annotation)))


def test_a_section_is_not_emptied(tmp_path: Path) -> None:
    file = written(tmp_path, benchmark="mt-bench")
    assert load_as(EvaluationConfig, file, ["sampling={}", "judging={}"]) == load_as(EvaluationConfig, file)
    with pytest.raises(UserError, match=r"sampling: should be a mapping of keys \(got None\)"):
        load_as(EvaluationConfig, file, ["sampling=null"])  # a line with nothing behind it is no decision
    greedy = load_as(EvaluationConfig, file, ["sampling.by_category={}"])
    assert greedy.sampling.by_category == {} and greedy.sampling.of("writing").temperature == 0


def test_one_s_own_benchmark_is_one_more_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("prompts: {source: toy-test}\nreward_models: {r: toy}\nsampling: {temperature: 0}\n")
    config = load_as(EvaluationConfig, written(tmp_path, benchmark=str(own)))
    assert (config.prompts.source, config.reward_models, config.sampling.temperature) == ("toy-test", {"r": "toy"}, 0)
    alone = load_as(EvaluationConfig, own, ["name=e", f"models={MODELS}", f"judges={JUDGES}"])
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
    named = load_as(EvaluationConfig, file, ["name=e", "models.a=runs/a", "models.b=runs/b", f"judges={JUDGES}"])
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
