"""Python: the names at hand, the objects that calls return, and a policy in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import orpo_ray
from orpo_ray import api
from orpo_ray.config import ModelConfig, TrainConfig
from orpo_ray.data import toyworld
from orpo_ray.modeling.loading import load_policy as load_network

MAPPING: dict[str, Any] = {"name": "run", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}


def test_importing_it_imports_nothing_heavy() -> None:
    code = """
import sys, orpo_ray
assert set(orpo_ray.__all__) <= set(dir(orpo_ray))
heavy = {"torch", "ray", "pydantic", "pandas", "transformers"} & set(sys.modules)
assert not heavy, heavy
assert orpo_ray.UserError.__module__ == "orpo_ray.errors"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_those_of_the_api() -> None:
    assert all(getattr(orpo_ray, name) is getattr(api, name) for name in orpo_ray.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        orpo_ray.trian  # type: ignore[attr-defined]  # noqa: B018


def test_a_configuration_is_a_file_a_mapping_or_a_section(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MAPPING))
    given: list[Any] = [file, str(file), MAPPING, TrainConfig.model_validate(MAPPING)]
    found = [api._resolved(TrainConfig, each, {"optim.lr": 1e-4, "data.eval": None}) for each in given]
    assert all(each == found[0] for each in found) and found[0].optim.lr == 1e-4
    with pytest.raises(orpo_ray.UserError, match=r"the configuration: unknown key optim.lrr; did you mean optim.lr\?"):
        api._resolved(TrainConfig, MAPPING, {"optim.lrr": 1})
    model = {"name_or_path": api.TrainingRun(tmp_path)}  # what was made stands for its folder
    assert api._resolved(TrainConfig, {**MAPPING, "model": model}, None).model.name_or_path == str(tmp_path)
    assert api._resolved(TrainConfig, MAPPING, {"model.name_or_path": tmp_path}).model.name_or_path == str(tmp_path)
    assert api._resolved(TrainConfig, MAPPING, {"data.train": "./Gr\u00fc\U0001f600.jsonl"}).data.train.endswith(
        "\U0001f600.jsonl"
    )
    with pytest.raises(orpo_ray.UserError, match=r"optim\.lr: cannot be written in a configuration: .*int64"):
        api._resolved(TrainConfig, MAPPING, {"optim.lr": np.int64(1)})
    with pytest.raises(orpo_ray.UserError, match="a configuration is a file, a mapping or a TrainConfig"):
        api._resolved(TrainConfig, 3, None)  # type: ignore[arg-type]


def test_a_win_rate_is_of_whichever_of_the_two_is_asked_for(tmp_path: Path) -> None:
    pair = {"model": "a", "against": "b", "reward_model": "truth", "win_rate": 0.7, "ci95": [0.6, 0.8]}
    pair |= {"prompts": 9, "p_value": 0.01, "p_holm": 0.02}
    (tmp_path / "winrates.json").write_text(json.dumps({"pairs": [pair]}))
    found = api.Evaluation(tmp_path)
    assert found.win_rate("a", "b") == (0.7, 0.6, 0.8)
    assert found.win_rate("b", "a", "truth") == pytest.approx((0.3, 0.2, 0.4))
    assert list(found.winrates["p_holm"]) == [0.02] and found.winrates.loc[0, "prompts"] == 9
    with pytest.raises(orpo_ray.UserError, match="has no comparison of a with c by truth"):
        found.win_rate("a", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    load_network(ModelConfig(name_or_path="toy", dtype="float32"), seed=0).model.save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    return folder


def test_a_policy_answers_as_generate_does(folder: Path) -> None:
    prompts = [record["prompt"] for record in list(toyworld.records("toy-test"))[:3]]
    policy = orpo_ray.load_policy(folder)
    found = policy.generate(prompts, max_tokens=5, temperature=0)
    tokenizer, network = toyworld.tokenizer(), AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        drawn = network.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
        assert answer.strip() == tokenizer.decode(drawn, skip_special_tokens=True).strip()


def test_what_is_drawn_depends_on_prompt_and_seed_alone(folder: Path) -> None:
    policy = orpo_ray.load_policy(folder)
    first, again, other = policy.generate(["Ada asks: What", "Ada asks: What", "Ben asks:"], max_tokens=8)
    assert first != again
    assert policy.generate(["Ben asks:", "Ada asks: What"], max_tokens=8) == [other, first]
    assert policy.generate(["Ada asks: What"], max_tokens=8, seed=1) != [first]
    assert policy.generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Ada asks:", "generate: takes a list of prompts; put brackets around one"),
        ([""], "prompt 0: "),
        (["Ada asks:", [{"role": "user"}]], "prompt 1: "),
        ([3], "prompt 0: "),
        ([["a"]], "prompt 0: "),
        (["Ada " * 200], "prompt 0: .* do not fit the model's context of 128"),
    ],
)
def test_what_is_no_prompt_is_one_line(folder: Path, prompts: Any, message: str) -> None:
    with pytest.raises(orpo_ray.UserError, match=message):
        orpo_ray.load_policy(folder).generate(prompts, max_tokens=4)


def test_settings_that_are_none_are_one_line(folder: Path) -> None:
    policy = orpo_ray.load_policy(folder)
    for settings, message in (
        ({"max_tokens": 0}, "generate: max_tokens: should be greater than or equal to 1"),
        ({"temperature": -1}, "generate: temperature: "),
        ({"stop": [1]}, "generate: stop.0: should be a text"),
    ):
        with pytest.raises(orpo_ray.UserError, match=message) as error:
            policy.generate(["Ada asks:"], **settings)
        assert "\n" not in str(error.value)
    with pytest.raises(orpo_ray.UserError, match="load_policy: dtype: "):
        orpo_ray.load_policy(folder, dtype="half")


def test_a_text_that_ends_answers_is_one_text(folder: Path) -> None:
    policy = orpo_ray.load_policy(folder)
    (answer,) = policy.generate(["Ada asks: What"], max_tokens=24)
    stop = answer.strip()[3:6]  # whose letters stand before it, too
    assert policy.generate(["Ada asks: What"], max_tokens=24, stop=stop) == policy.generate(
        ["Ada asks: What"], max_tokens=24, stop=[stop]
    )
