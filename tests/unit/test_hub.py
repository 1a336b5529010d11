"""Without a network, or without the file, a mistake is told at once; and what the cache holds is found."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from orpo_ray import hub
from orpo_ray.config import ModelConfig
from orpo_ray.data.names import require_there
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_tokenizer, model_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """One that the Hub is said to be on, where nothing listens; what the look-ups change is taken back."""
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{number}")
    yield number
    with socket.create_server(("127.0.0.1", number)):
        assert hub.unreachable() == ""


def test_the_offline_mode_lasts_until_the_hub_answers(port: int) -> None:
    assert hub.unreachable().startswith("127.0.0.1 cannot be reached (Connection refused), and the cache here lacks it")
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub.unreachable()  # and is looked at anew
    with socket.create_server(("127.0.0.1", port)):
        assert hub.unreachable() == ""
    assert not constants.HF_HUB_OFFLINE and "HF_HUB_OFFLINE" not in os.environ


def test_a_proxy_is_asked_in_the_hubs_place(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert "hub.example cannot be reached over the proxy 127.0.0.1 (Connection refused)" in hub.unreachable()
    with socket.create_server(("127.0.0.1", port)):
        assert hub.unreachable() == ""


def test_the_mode_that_a_person_sets_is_left_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.unreachable() == ""
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("port")
def test_a_model_that_is_not_in_the_cache_is_told_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^nobody/nothing: the tokenizer cannot be loaded: 127.0.0.1 cannot be"):
        load_tokenizer(ModelConfig(name_or_path="nobody/nothing"))
    with pytest.raises(UserError, match=r"^nobody/nothing is no folder here, .* cannot be reached"):
        model_folder("nobody/nothing")
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("port")
def test_a_model_in_the_cache_is_found(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--some--model"
    shutil.copytree(shared / "tokenizers/opt", cached / "snapshots" / ("0" * 40))
    (cached / "snapshots" / ("0" * 40) / "config.json").write_text('{"model_type": "opt"}')
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    assert load_tokenizer(ModelConfig(name_or_path="some/model")).eos_token == "</s>"
    assert time.monotonic() - started < 10


def test_a_file_that_is_not_there_is_told_before_anything_large_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("{name: a, model: {name_or_path: toy}, data: {train: toy, eval: toy-test}}")
    for command, key in (("data", "data.train"), ("train", "data.train"), ("data", "data.eval")):
        code = (
            "import atexit, sys; from orpo_ray.cli import main\n"
            "atexit.register(lambda: print(sorted({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules))))\n"
            f"main({[command, str(config), f'{key}=pairs.jsonl', 'data.format=plain']!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "[]\n")
        assert done.stderr == "orpo-ray: pairs.jsonl: no such file or folder\n"


def test_what_may_be_there_is_let_pass(tmp_path: Path) -> None:
    require_there(["toy", "org/name", "org/name:sub", "s3://bucket/x.jsonl", str(tmp_path), f"{tmp_path}:subset"])
    for source in ("x.jsonl.gz", "./x", "nothing", "a/b/c"):
        with pytest.raises(UserError, match=f"^{source}: no such file or folder"):
            require_there(["toy", source])
