"""What docs/security.md promises: no stranger's code is run, no path leads out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_evaluation_models import save_toy
from test_report import make_run

from orpo_ray.config import ModelConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation.embedding import load_embedder
from orpo_ray.inference.models import find_policy, find_reward_model
from orpo_ray.modeling.loading import load_policy, load_tokenizer
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.report import write_report
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.export import export_model

# Code that comes with a model -----------------------------------------------------------------------------------------


def with_code(folder: Path, marker: Path, *, labels: int | None = None) -> Path:
    """A whole model whose configuration, model and tokenizer want Python code from its own folder."""
    save_toy(folder, labels=labels)
    (folder / "custom.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import OPTConfig, OPTForCausalLM, OPTForSequenceClassification, PreTrainedTokenizerFast\n"
        "class CustomConfig(OPTConfig):\n    model_type = 'custom'\n"
        "class Custom(OPTForCausalLM):\n    config_class = CustomConfig\n"
        "class CustomTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config |= {
        "model_type": "custom",
        "auto_map": {"AutoConfig": "custom.CustomConfig", **dict.fromkeys(names, "custom.Custom")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "CustomTokenizer",
        "auto_map": {"AutoTokenizer": ["custom.CustomTokenizer", "custom.CustomTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


LOADERS: dict[str, Callable[[str, Path], object]] = {
    "policy": lambda name, _: load_policy(ModelConfig(name_or_path=name), seed=0),
    "random weights": lambda name, _: load_policy(ModelConfig(name_or_path=name, init="random"), seed=0),
    "tokenizer": lambda name, _: load_tokenizer(ModelConfig(name_or_path="toy", tokenizer=name)),
    "reward model": lambda name, _: load_reward_model(ModelConfig(name_or_path=name), seed=0),
    "evaluated policy": lambda name, cache: find_policy("x", name, cache),
    "evaluated reward model": lambda name, _: find_reward_model("x", name, "auto"),
    "embedder": lambda name, _: load_embedder(name),
}


def refused(load: Callable[[], object], marker: Path) -> str:
    with pytest.raises(UserError) as caught:
        load()
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", ["a" * 3000, "~nobody-of-this-name/x", "./" + "a/" * 3000])
def test_a_name_that_no_file_can_have_is_told(kind: str, name: str, tmp_path: Path, marker: Path) -> None:
    """A home that nobody has where a configuration is read, for whoever names its model there."""
    with pytest.raises(
        (UserError, ValidationError), match="no home folder|no such folder" if name.startswith("~") else ""
    ):
        LOADERS[kind](name, tmp_path / "cache")


@pytest.mark.parametrize("kind", LOADERS)
def test_code_that_comes_with_a_model_is_not_run(kind: str, tmp_path: Path, marker: Path) -> None:
    folder = with_code(tmp_path / "model", marker, labels=1 if "reward" in kind else None)
    told = refused(lambda: LOADERS[kind](str(folder), tmp_path / "cache"), marker)
    assert str(folder) in told
    assert "comes with Python code of its own, which is not run" in told
    assert "trust_remote_code=true" in told or kind == "embedder"


def test_the_code_runs_where_it_is_trusted(tmp_path: Path, marker: Path) -> None:
    """The refusals above are for the reason they give."""
    folder = with_code(tmp_path / "model", marker)
    load_policy(ModelConfig(name_or_path=str(folder), trust_remote_code=True), seed=0)
    assert marker.exists()


# Pickles --------------------------------------------------------------------------------------------------------------


class Code:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def pickled(folder: Path, marker: Path, name: str = "pytorch_model.bin") -> Path:
    """`folder` with its weights replaced by a pickle."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Code(marker)}, folder / name)
    return folder


def test_a_pickle_runs_code(tmp_path: Path, marker: Path) -> None:
    """What the next tests rest on."""
    folder = pickled(save_toy(tmp_path / "model"), marker)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("kind", ["policy", "reward model", "evaluated policy", "evaluated reward model"])
def test_pickled_weights_are_refused(kind: str, tmp_path: Path, marker: Path) -> None:
    folder = pickled(save_toy(tmp_path / "model", labels=1 if "reward" in kind else None), marker)
    told = refused(lambda: LOADERS[kind](str(folder), tmp_path / "cache"), marker)
    assert str(folder) in told
    assert "safetensors" in told


def save_encoder(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        folder
    )
    toyworld.tokenizer().save_pretrained(folder)
    return folder


def test_pickled_weights_of_an_embedder_are_refused(tmp_path: Path, marker: Path) -> None:
    folder = save_encoder(tmp_path / "embedder")
    assert "safetensors" in refused(lambda: load_embedder(str(pickled(folder, marker))), marker)


def adapter(folder: Path, base: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = load_policy(ModelConfig(name_or_path=str(base)), seed=0).model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


def test_pickled_adapters_are_refused(tmp_path: Path, marker: Path) -> None:
    folder = adapter(tmp_path / "adapter", save_toy(tmp_path / "base"))
    pickled(folder, marker, "adapter_model.bin")
    # Another file in safetensors does not make up for it: peft would fall back to the pickle.
    shutil.copy(tmp_path / "base" / "model.safetensors", folder / "other.safetensors")
    told = refused(lambda: find_policy("x", str(folder), tmp_path / "cache"), marker)
    assert told.endswith("holds no weights in safetensors (no adapter_model.safetensors)")


def test_an_adapter_brings_in_neither_pickles_nor_code_by_its_base(tmp_path: Path, marker: Path) -> None:
    base = save_toy(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base)
    pickled(base, marker)
    assert "safetensors" in refused(lambda: find_policy("x", str(folder), tmp_path / "cache"), marker)
    shutil.rmtree(base)
    with_code(base, marker)
    assert "Python code of its own" in refused(lambda: find_policy("x", str(folder), tmp_path / "cache"), marker)


ENGINES = {
    "generator": "Generator(EngineOptions(folder, 'float32', 64), SamplingConfig())",
    "judge": "VllmJudge(EvaluatedModel('x', folder, Path(folder), '', 'float32', 'float32', 64, False), None, 512, "
    "torch.device('cpu'))",
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """How each engine ends that finds pickles, and what these would write. Both in one process, of vLLM's own kind."""
    place = tmp_path_factory.mktemp("pickles")
    folders = {
        name: str(pickled(save_toy(place / name, labels=1 if name == "judge" else None), place / "ran"))
        for name in ENGINES
    }
    code = f"""
import json, os, sys, torch, traceback
from pathlib import Path
from orpo_ray.inference.generation import ENVIRONMENT, EngineOptions, Generator
os.environ |= ENVIRONMENT
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.scoring import VllmJudge
endings = {{}}
for name, folder in {folders}.items():
    try:
        eval({ENGINES}[name])
        endings[name] = "it started"
    except Exception:
        endings[name] = traceback.format_exc()
Path({str(place / "endings.json")!r}).write_text(json.dumps(endings))
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return json.loads((place / "endings.json").read_text()), place / "ran"


@pytest.mark.parametrize("engine", ENGINES)
def test_vllm_is_told_to_read_safetensors_alone(engine: str, refusals: tuple[dict[str, str], Path]) -> None:
    """Past the check that comes before it: weights that are exchanged for pickles once a plan is made."""
    endings, marker = refusals
    assert "Cannot find any model weights" in endings[engine], endings[engine][-3000:]
    assert not marker.exists()


# Paths ----------------------------------------------------------------------------------------------------------------


def test_links_in_a_run_folder_are_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("mine")
    config = parse_config(
        {
            "name": "linked", "model": {"name_or_path": "toy", "dtype": "float32"},
            "data": {"train": "toy", "eval": "toy-test"}, "storage": {"path": str(tmp_path)},
        }, [], "test",
    )  # fmt: skip
    folder = RunFolder(make_run(config.run_dir))
    policy = load_policy(config.model, seed=0)
    for path in (folder.config, folder.report):
        path.unlink(missing_ok=True)
    folder.report.symlink_to(victim)
    folder.model.symlink_to(outside)
    folder.open_for(config)
    write_report(folder.path)
    export_model(folder.model, policy.model, policy.model.state_dict(), toyworld.tokenizer(), config, {"step": 3}, 9)
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert victim.read_text() == "mine"
    assert not folder.report.is_symlink()
    assert (folder.model / "model.safetensors").is_file()
