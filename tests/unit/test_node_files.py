"""The files of a model on another node than the driver's."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from orpo_ray.data import toyworld
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.models import find_policy
from orpo_ray.inference.node_files import on_this_node


def save(folder: Path) -> None:
    config = toyworld.model_config()
    config.num_hidden_layers = 1
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    write_text_rule(folder, through_template=False)


def test_a_model_of_the_hub_is_each_node_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    caches = [tmp_path / name for name in ("driver", "node", "bare")]
    for cache in caches[:2]:
        snapshot = cache / "models--org--name" / "snapshots" / commit
        save(snapshot)
        refs = cache / "models--org--name" / "refs"
        refs.mkdir()
        (refs / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(caches[0]))
    found = find_policy("a", "org/name", tmp_path)
    assert found.hub == f"org/name@{commit}"
    assert on_this_node(found) == found
    away = found.folder.rename(tmp_path / "away")  # another node does not have the driver's disk
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(caches[1]))
    there = on_this_node(found)
    assert there.folder == caches[1] / found.folder.relative_to(caches[0])
    assert replace(there, folder=found.folder) == found
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(caches[2]))
    with pytest.raises(UserError, match=rf"^models\.a: on {re.escape(socket.gethostname())}: org/name@{commit} is no"):
        on_this_node(found)
    own = find_policy("a", str(away), tmp_path)
    assert own.hub == "" and on_this_node(own) == own
    os.utime(away / "config.json", (0, 0))  # a copy
    assert on_this_node(own) == own
    (away / "config.json").write_text((away / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"^models\.a: .* has another model in .*/away than the driver's host; models"):
        on_this_node(own)
    (away / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^models\.a: .* has no .*/away/model\.safetensors, which the driver's host"):
        on_this_node(own)
