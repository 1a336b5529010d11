"""Bad configurations of every kind: a plain line, at once; good ones read back as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import assert_one_line, cases, damaged, damages, odd_texts, odd_values
from hypothesis import example, given
from hypothesis import strategies as st

from orpo_ray.config import BenchmarkConfig, EvaluationConfig, ScoreConfig, TrainConfig, load_as, load_config, read_yaml
from orpo_ray.config.loading import parse_as
from orpo_ray.config.reading import MAX_CHARACTERS
from orpo_ray.config.section import Section
from orpo_ray.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS: list[tuple[type[Section], dict[str, Any]]] = [
    (TrainConfig, read_yaml(CONFIGS / "opt-1.3b-hh-orpo-lora.yaml")),
    (
        TrainConfig,
        {"name": "r", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}, "objective": {"name": "sft"}},
    ),
    (EvaluationConfig, read_yaml(CONFIGS / "toy-winrate.yaml")),
    (ScoreConfig, read_yaml(CONFIGS / "score-toy.yaml")),
    (BenchmarkConfig, read_yaml(CONFIGS / "bench" / "hh-opt-52m-lora.yaml")),
]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = (
        [leaf for key, value in tree.items() for leaf in leaves(value, (*path, key))] if isinstance(tree, dict) else []
    )
    return [path, *below]


PLACES = {id(mapping): leaves(mapping)[1:] for _, mapping in KINDS}
kinds = st.sampled_from(range(len(KINDS)))
one_change = st.tuples(st.integers(0, 999), st.sampled_from(["set", "delete", "beside"]), odd_texts, odd_values)
changes = st.lists(one_change, max_size=3)


def changed(mapping: dict[str, Any], steps: list[tuple[int, str, str, Any]]) -> dict[str, Any]:
    places = PLACES[id(mapping)]
    mapping = json.loads(json.dumps(mapping))
    for index, what, name, value in steps:
        *path, last = places[index % len(places)]
        holder: Any = mapping
        for part in path:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            if what == "delete":
                holder.pop(last, None)
            else:
                holder[last if what == "set" else name] = value
    return mapping


@given(kinds, changes)
@cases(900)
def test_a_changed_value_is_taken_or_told(kind: int, steps: list[tuple[int, str, str, Any]]) -> None:
    schema, mapping = KINDS[kind]
    try:
        config = parse_as(schema, changed(mapping, steps), [], "x.yaml")
    except UserError as error:
        assert_one_line(error, "x.yaml")
    else:
        config.to_yaml()


@given(kinds, changes)
@cases(250)
def test_what_is_taken_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, kind: int, steps: list[tuple[int, str, str, Any]]
) -> None:
    schema, mapping = KINDS[kind]
    file = tmp_path_factory.getbasetemp() / "back.yaml"
    file.write_text(yaml.safe_dump(changed(mapping, steps)), encoding="utf-8")
    try:
        config = load_as(schema, file)
    except UserError as error:
        assert_one_line(error, str(file))
        return
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_as(schema, file) == config
    assert load_as(schema, file).to_yaml() == config.to_yaml()


SMALL = (
    b"name: run\nmodel: {name_or_path: toy}\ndata:\n  train: &a toy\n  eval: *a\nseed: 3\n# text\noptim: {lr: 1e-5}\n"
)


@given(damages)
@example([("insert", 0, 255)])
@cases(700)
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[str, int, int]]) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(damaged(SMALL, damage))
    try:
        config = load_config(file)
    except UserError as error:
        assert_one_line(error, str(file))
    else:
        file.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(file) == config


KEYS = [".".join(place) for _, mapping in KINDS[:2] for place in PLACES[id(mapping)]]
yaml_texts = st.text(st.sampled_from("aetru {}[]:,&*!<|>-?'\"\\#%@~.0189_=\n\t"), max_size=15)


@given(st.builds("{}={}".format, st.sampled_from(KEYS) | odd_texts, odd_texts | yaml_texts))
@example("train.deepspeed={a: 2024-01-01}")  # read back as text
@example("train.deepspeed={a: .nan}")  # equal to nothing, so the run could not be continued
@example("storage.path=~nobody-of-this-name/runs")
@example('storage.path="a\\0b"')
@example('data.train="\\ud800"')
@example("model.name_or_path=" + "a" * 3000)  # too long for any file system
@cases(700)
def test_overrides(override: str) -> None:
    try:
        config = parse_as(TrainConfig, KINDS[1][1], [override], "x.yaml")
    except UserError as error:
        assert_one_line(error)
    else:
        assert config.with_absolute_paths().run_dir == config.run_dir
        assert parse_as(TrainConfig, yaml.safe_load(config.to_yaml()), [], "x.yaml") == config


def _aliases(line: str, levels: int = 9) -> str:
    return "a0: &a0 {k: x}\n" + "".join(line.format(i, ",".join([f"*a{i - 1}"] * 9)) for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_aliases("a{0}: &a{0} [{1}]\n"), "holds more than 100,000 values"),
        (_aliases("a{0}: &a{0} {{<<: [{1}]}}\n"), "holds more than 100,000 values"),
        (_aliases("a{0}: &a{0} [[[[[[[[[[{1}]]]]]]]]]]\n", 6), "nested deeper than 50 levels"),
        ("train: &a {deepspeed: *a}", "an alias stands for what holds it"),
        ("train: &a [*a]", "an alias stands for what holds it"),
        ("train: " + "[" * 100 + "]" * 100, "nested deeper than 50 levels"),
        ("train: " + "{a: " * 5000, "maximum recursion depth exceeded"),
        ("name: !!python/object/apply:os.system [touch marker]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ('name: "a\\0b"', "a text holds NUL"),
        ('name: "\\ud800"', "half of a surrogate pair"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        (SMALL.decode().replace("seed: 3", "seed: 1" + ":1" * 5000), "seed: should be"),
        ("#" * (MAX_CHARACTERS + 1), "longer than 1,048,576 characters"),
    ],
)  # fmt: skip
def test_a_bomb_is_told_at_once(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        load_config(file)
    assert_one_line(caught.value, str(file))
    assert not (tmp_path / "marker").exists()


def test_a_name_is_one_folder_s() -> None:
    names = ["../x", "/etc", "a/b", ".hidden", "..", "a\\b".replace("\\", "/"), "x\n", "", "a" * 101, "~"]
    for schema, mapping in KINDS:
        for name in names:
            with pytest.raises(UserError, match="name: "):
                parse_as(schema, {**mapping, "name": name}, [], "x.yaml")
    schema, mapping = KINDS[2]
    for label in names:
        for key in ("models", "reward_models"):
            with pytest.raises(UserError, match=key):
                parse_as(schema, {**mapping, key: {label: "runs/x"}}, [], "x.yaml")
