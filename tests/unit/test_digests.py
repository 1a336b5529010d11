"""What is kept for a model is kept for all that is in it: digests of files, of networks, and who goes by them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build, random_pairs
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from test_evaluation_models import save_toy
from test_reward_model import named, save_language_model
from test_weights import loaded
from transformers import AutoModelForCausalLM, GenerationConfig

from orpo_ray.config import LoraConfig as Adapters
from orpo_ray.config import OptimConfig, TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.evaluation.embedding import DEFAULT, embedder_identity
from orpo_ray.inference.models import find_policy
from orpo_ray.modeling import digests
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.digests import files_digest, frozen_digest, network_digest
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.saving import Saver
from orpo_ray.training.worker import _resume


def change(file: Path, offset: int) -> None:
    """One bit, in place; the file's size and, as far as a program can set them back, its times stay."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestFiles:
    def test_every_byte_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(digests, "_STRETCH", 10)
        file = tmp_path / "model.safetensors"
        file.write_bytes(bytes(range(35)))
        seen = {files_digest([file])}
        for offset in range(35):
            change(file, offset)
            seen.add(files_digest([file]))
        assert len(seen) == 36
        assert all(key[0] != str(file) for key in digests._known), "it was changed a moment ago, and may be again"

    def test_what_is_known_is_not_read_again_unless_it_shows_a_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "_SETTLED", -1)
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"first")
        first = files_digest([file])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", lambda *_, **__: pytest.fail("it is read again"))
            assert files_digest([file]) == first
        time.sleep(0.05)  # a file system's clock may tick a hundred times a second
        change(file, 0)  # its size and the time of its last change are as they were
        assert files_digest([file]) != first

    def test_names_and_order_count(self, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("a", "b", "c")]
        for file in files:
            file.write_bytes(b"same" if file.name != "c" else b"")
        assert len({files_digest(some) for some in ([], files[:1], files[1:2], files[:2], files[1::-1], files)}) == 6


class TestNetworks:
    def test_every_number_and_every_setting_counts_and_no_name(self, tmp_path: Path) -> None:
        network = build(FAMILIES["gpt2"], NAME)
        seen = {network_digest(network, network.state_dict())}
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.view(-1)[-1] += 1
                seen.add(network_digest(network, network.state_dict()))
        assert len(seen) == 1 + len(list(network.parameters()))
        network.config._name_or_path, network.config.transformers_version = "moved", "6.0"
        assert network_digest(network, network.state_dict()) in seen
        network.config.layer_norm_epsilon = 1e-3
        assert network_digest(network, network.state_dict()) not in seen
        halved = network.to(torch.bfloat16)
        assert network_digest(halved, halved.state_dict()) not in seen

    def test_a_loaded_model_is_known_wherever_it_lies(self, tmp_path: Path) -> None:
        for place in ("here", "there"):
            save_language_model(tmp_path / place, FAMILIES["llama-grouped-query"])
        here, there = (load_policy(named(tmp_path / place), seed=0).model for place in ("here", "there"))
        assert network_digest(here, here.state_dict()) == network_digest(there, there.state_dict())

    def test_of_adapters_the_frozen_weights_alone(self) -> None:
        assert frozen_digest(build(FAMILIES["llama-grouped-query"], NAME)) is None
        network = build(FAMILIES["llama-grouped-query"], NAME)
        add_adapters(network, Adapters(rank=2), seed=0)
        before = frozen_digest(network)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
        assert before is not None and frozen_digest(network) == before
        with torch.no_grad():
            network.model.norm.weight[0] += 1
        assert frozen_digest(network) != before


class TestResume:
    def settings(self, tmp_path: Path, *overrides: str) -> TrainConfig:
        mapping = {"name": "r", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
        return parse_config(mapping, [f"storage.path={tmp_path}", *overrides], "test")

    @pytest.mark.parametrize("key", ["model.name_or_path", "objective.reference"])
    def test_weights_that_a_run_rests_on_may_not_change_under_it(self, key: str, tmp_path: Path) -> None:
        engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), OptimConfig())
        checkpoints, folder = Checkpoints(str(tmp_path / "checkpoints")), RunFolder(tmp_path / "r")
        saver = Saver(checkpoints, engine, newest=9, best=0, warn=pytest.fail)
        saver.begin(Manifest(1, {"step": 1}, 1, "settings", "pairs", None, {}, {key: "then"}))
        saver.finish()

        def resumed(now: dict[str, str], *overrides: str) -> int:
            known = {"config": "settings", "data": "pairs", "weights": now}
            return _resume(self.settings(tmp_path, *overrides), engine, checkpoints, known, folder)[0].step

        assert resumed({key: "then"}) == 1
        with pytest.raises(UserError) as caught:
            resumed({key: "now"})
        assert f"{key}: the " in str(caught.value) and "are not those that the run began with" in str(caught.value)
        assert f"resume.allow_changes=[{key}]" in str(caught.value)
        assert resumed({key: "now"}, f"resume.allow_changes=[{key}]") == 1

    def test_a_manifest_from_before_says_nothing_of_them(self) -> None:
        held = json.loads(Manifest(1, {}, 1, "settings", "pairs", None, {}, {"model.name_or_path": "x"}).to_json())
        assert Manifest.from_json(json.dumps(held).encode()).weights == {"model.name_or_path": "x"}
        del held["weights"]
        assert Manifest.from_json(json.dumps(held).encode()).weights == {}


def saved_adapter(folder: Path, base: Path) -> Path:
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(network, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


class TestEvaluations:
    def test_one_changed_number_of_a_large_file_is_another_model(self, tmp_path: Path) -> None:
        """Where a digest of 64 stretches of it would look past."""
        folder = save_toy(tmp_path / "policy")
        file = folder / "model.safetensors"
        weights = loaded(file)
        save_file({**weights, "score.weight": torch.zeros(1 << 21)}, file, {"format": "pt"})  # 8 MiB, last in the file
        before = find_policy("a", str(folder), tmp_path).digest
        size = file.stat().st_size
        samples = [i * (size - (1 << 16)) // 63 for i in range(64)]
        between = (samples[-20] + (1 << 16) + samples[-19]) // 2
        assert samples[-20] + (1 << 16) < between < samples[-19]
        change(file, between)
        assert find_policy("a", str(folder), tmp_path).digest != before

    def test_what_ends_a_generation_counts(self, tmp_path: Path) -> None:
        folder = save_toy(tmp_path / "policy")
        found = set()
        for ends in ([2], [2, 7], None):
            if ends is None:
                (folder / "generation_config.json").unlink()
            else:
                GenerationConfig(eos_token_id=ends).save_pretrained(folder)
            found.add(find_policy("a", str(folder), tmp_path).digest)
        assert len(found) == 3

    def test_an_adapter_over_a_base_that_was_retrained_in_place_is_merged_anew(self, tmp_path: Path) -> None:
        base = save_toy(tmp_path / "base")
        adapter = saved_adapter(tmp_path / "adapter", base)
        before = find_policy("a", str(adapter), tmp_path / "cache")
        assert find_policy("a", str(adapter), tmp_path / "cache") == before
        change(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 1)
        after = find_policy("a", str(adapter), tmp_path / "cache")
        assert after.folder != before.folder and after.digest != before.digest
        GenerationConfig(eos_token_id=[2, 7]).save_pretrained(base)
        assert find_policy("a", str(adapter), tmp_path / "cache").folder not in (before.folder, after.folder)

    def test_an_embedder_is_known_by_its_files(self, tmp_path: Path) -> None:
        """The default, which is a package's or the Hub's, by its name."""
        assert embedder_identity(DEFAULT) == DEFAULT
        folder = save_toy(tmp_path / "embedder")
        before = embedder_identity(str(folder))
        change(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
        assert embedder_identity(str(folder)) != before != str(folder)

    @pytest.mark.parametrize("lacking", ["base", "adapter"])
    def test_nothing_is_merged_that_the_files_lack(self, lacking: str, tmp_path: Path) -> None:
        base = save_toy(tmp_path / "base")
        adapter = saved_adapter(tmp_path / "adapter", base)
        file = {"base": base / "model.safetensors", "adapter": adapter / "adapter_model.safetensors"}[lacking]
        weights = loaded(file)
        weights.pop(next(name for name in sorted(weights) if "q_proj" in name))
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(UserError) as caught:
            find_policy("a", str(adapter), tmp_path / "cache")
        assert f"cannot be merged into its base {base}: " in str(caught.value)
        assert f"{tmp_path / lacking}: its files lack weights of the model, such as" in str(caught.value)
        assert "q_proj" in str(caught.value) and "\n" not in str(caught.value)

    def test_a_base_that_is_gone_is_told_with_its_adapter(self, tmp_path: Path) -> None:
        adapter = saved_adapter(tmp_path / "adapter", save_toy(tmp_path / "base"))
        (tmp_path / "base").rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"models\.a: .*base: no such folder .*; it is the base of the adapter .*"):
            find_policy("a", str(adapter), tmp_path / "cache")


def test_a_reference_is_known_by_its_settings_too(tmp_path: Path) -> None:
    """The same weights under another `config.json` give other log-probs."""
    from orpo_ray.training.reference import reference_key

    keys = set()
    for theta in (10_000.0, 500.0):
        config = FAMILIES["llama-grouped-query"].to_dict() | {"rope_theta": theta, "rope_parameters": None}
        save_language_model(tmp_path, type(FAMILIES["llama-grouped-query"])(**config))
        network = load_policy(named(tmp_path), seed=0).model
        keys.add(reference_key(network_digest(network, network.state_dict()), random_pairs(4)))
    assert len(keys) == 2
