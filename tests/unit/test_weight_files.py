"""Where a model's weights are opened from: whatever comes with it, from safetensors of its own folder alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_evaluation_models import save_toy
from test_security import LOADERS, Code, adapter, pickled, refused, save_encoder

from orpo_ray.inference.models import find_policy

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def indexed(folder: Path, name: object) -> None:
    """Put an index beside the weights in `folder` that says they are in the file `name`."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        keys = list(file.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    (folder / INDEX).write_text(json.dumps(index))


def to_a_pickle(folder: Path, marker: Path) -> None:
    indexed(folder, "pytorch_model.bin")
    pickled(folder, marker)


def out_of_the_folder(folder: Path, marker: Path) -> None:
    indexed(folder, "../other/model.safetensors")
    (folder.parent / "other").mkdir()
    (folder / WEIGHTS).rename(folder.parent / "other" / WEIGHTS)


def to_an_absolute_place(folder: Path, marker: Path) -> None:
    indexed(folder, str(folder.parent / WEIGHTS))
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)


def to_no_name(folder: Path, marker: Path) -> None:
    indexed(folder, ["model.safetensors"])
    (folder / WEIGHTS).unlink()


def to_what_is_missing(folder: Path, marker: Path) -> None:
    indexed(folder, "model-00001-of-00001.safetensors")
    (folder / WEIGHTS).unlink()


def pickled_under_another_name(folder: Path, marker: Path) -> None:
    pickled(folder, marker, WEIGHTS)


def pickled_under_a_name_of_the_index(folder: Path, marker: Path) -> None:
    indexed(folder, "model-00001-of-00001.safetensors")
    pickled(folder, marker, "model-00001-of-00001.safetensors")


def cut_short(folder: Path, marker: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def named_by_the_configuration(folder: Path, marker: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    torch.save({"weight": Code(marker)}, folder / "adapter_model.bin")


MANNERS: dict[Callable[[Path, Path], None], str] = {
    to_a_pickle: f"{INDEX}: weight_map names 'pytorch_model.bin', which is not in safetensors",
    out_of_the_folder: f"{INDEX}: weight_map names '../other/model.safetensors', which is no file of its own folder",
    to_an_absolute_place: "which is no file of its own folder",
    to_no_name: f"{INDEX}: weight_map names ['model.safetensors'], which is not in safetensors",
    to_what_is_missing: "model-00001-of-00001.safetensors: no such file of weights",
    pickled_under_another_name: "model.safetensors: not a whole safetensors file",
    pickled_under_a_name_of_the_index: "model-00001-of-00001.safetensors: not a whole safetensors file",
    cut_short: "model.safetensors: not a whole safetensors file",
    named_by_the_configuration: "transformers_weights",
}
"""What may be wrong with a folder's weights, and what is told of it."""
OPENING = ["policy", "reward model", "evaluated policy", "evaluated reward model", "embedder", "base of an adapter"]


def opened(kind: str, folder: Path, change: Callable[[Path], object]) -> Callable[[], object]:
    """The loader of `kind`, for a model in `folder` that was whole before `change`."""
    if kind == "embedder":
        save_encoder(folder)
    else:
        save_toy(folder, labels=1 if "reward" in kind else None)
    name = folder
    if kind == "base of an adapter":
        name, kind = adapter(folder.parent / "adapter", folder), "evaluated policy"
    change(folder)
    return lambda: LOADERS[kind](str(name), folder.parent / "cache")


@pytest.mark.parametrize("kind", OPENING)
def test_whole_weights_are_loaded(kind: str, tmp_path: Path) -> None:
    """The refusals below are for the reasons they give. Links are followed: the Hub's cache is made of them."""

    def linked(folder: Path) -> None:
        indexed(folder, "model-00001-of-00001.safetensors")
        (tmp_path / "blobs").mkdir()
        (folder / WEIGHTS).rename(tmp_path / "blobs" / "0123abcd")
        (folder / "model-00001-of-00001.safetensors").symlink_to("../blobs/0123abcd")

    opened(kind, tmp_path / "model", linked)()


@pytest.mark.parametrize("kind", OPENING)
@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: manner.__name__)
def test_weights_come_from_safetensors_of_the_own_folder(
    manner: Callable[[Path, Path], None], kind: str, tmp_path: Path, marker: Path
) -> None:
    load = opened(kind, tmp_path / "model", lambda folder: manner(folder, marker))
    told = refused(load, marker)
    assert str(tmp_path / "model") in told
    assert MANNERS[manner] in told


@pytest.mark.parametrize("kind", ["policy", "reward model", "embedder"])
def test_an_adapter_beside_a_model_is_not_loaded_unseen(kind: str, tmp_path: Path, marker: Path) -> None:
    """transformers would put it on the model, and take a pickled one."""

    def with_adapter(folder: Path) -> None:
        shutil.copytree(adapter(tmp_path / "adapter", save_toy(tmp_path / "base")), folder, dirs_exist_ok=True)

    load = opened(kind, tmp_path / "model", with_adapter)
    assert "holds an adapter (adapter_config.json)" in refused(load, marker)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path should be text, and is null"),
        ({"peft_type": "XLORA"}, "peft_type is 'XLORA', and only LORA is supported"),
        ({"revision": 7}, "revision should be text or null, and is a whole number"),
    ],
)
def test_an_adapter_names_its_base_and_no_more(change: dict[str, Any], told: str, tmp_path: Path, marker: Path) -> None:
    folder = adapter(tmp_path / "adapter", save_toy(tmp_path / "base"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    found = refused(lambda: find_policy("x", str(folder), tmp_path / "cache"), marker)
    assert found.startswith(f"models.x: {folder}/adapter_config.json: {told}")


def test_the_base_of_an_adapter_is_the_folder_that_was_looked_at(tmp_path: Path, marker: Path) -> None:
    """A run's folder stands for its model/; peft by itself would open what lies in the folder itself."""
    base = save_toy(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base)
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy").rename(base / "model")
    to_a_pickle(base, marker)
    assert find_policy("x", str(folder), tmp_path / "cache").folder.parent == tmp_path / "cache" / "merged"
    assert not marker.exists()
    to_a_pickle(base / "model", marker)
    told = refused(lambda: find_policy("x", str(folder), tmp_path / "cache"), marker)
    assert f"{base}/model/{INDEX}: weight_map names 'pytorch_model.bin'" in told


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `stranger/model` in an empty cache of the Hub, which is out of reach."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--stranger--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("kind", ["policy", "reward model", "embedder"])
def test_pickles_of_the_hub_are_refused(kind: str, hub: Path, tmp_path: Path, marker: Path) -> None:
    load = opened(kind, tmp_path / "model", lambda folder: indexed(folder, WEIGHTS))
    (tmp_path / "model").rename(hub)
    del load
    by_id = lambda: LOADERS[kind]("stranger/model", tmp_path / "cache")  # noqa: E731
    by_id()
    to_a_pickle(hub, marker)
    assert "weight_map names 'pytorch_model.bin', which is not in safetensors" in refused(by_id, marker)
    (hub / INDEX).unlink()
    (hub / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refused(by_id, marker)


@pytest.mark.parametrize("kind", ["policy", "reward model", "embedder", "evaluated policy"])
def test_the_revision_that_is_loaded_is_the_one_that_is_looked_at(
    kind: str, hub: Path, tmp_path: Path, marker: Path
) -> None:
    opened(kind, tmp_path / "model", lambda folder: None)
    shutil.copytree(tmp_path / "model", hub)
    other = hub.parent / ("1" * 40)
    shutil.copytree(hub, other)
    (hub.parent.parent / "refs" / "v2").write_text(other.name)
    LOADERS[kind]("stranger/model@v2", tmp_path / "cache")
    to_a_pickle(other, marker)
    LOADERS[kind]("stranger/model", tmp_path / "cache")
    told = refused(lambda: LOADERS[kind]("stranger/model@v2", tmp_path / "cache"), marker)
    assert f"{other.name}/{INDEX}: weight_map names 'pytorch_model.bin'" in told
