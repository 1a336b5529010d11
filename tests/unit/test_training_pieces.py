"""The pieces of training that need no cluster: schedules, run folders, engines' settings, loading, progress."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, random_pairs
from transformers import AutoModelForCausalLM

from orpo_ray.config import ModelConfig, OptimConfig, TrainConfig, parse_config
from orpo_ray.config.identity import of_one_run
from orpo_ray.data import toyworld
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.prepare import Highest
from orpo_ray.data.schedule import RoundSchedule, StepSchedule
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.loading import check_fit, load_policy, load_tokenizer, require_embeddings
from orpo_ray.modeling.memory import activation_bytes
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.report.runs import read_events
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import LAST, RunFolder, kept_model
from orpo_ray.terminal import Console
from orpo_ray.training import room
from orpo_ray.training.build_locks import wait_for_builds
from orpo_ray.training.deepspeed_engine import deepspeed_config
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.export import export_model
from orpo_ray.training.loop import Line, Sink, State, run
from orpo_ray.training.lr import learning_rate
from orpo_ray.training.progress import progress_bar
from orpo_ray.training.recorder import Recorder
from orpo_ray.training.remarks import fallen_margin, long_warmup, remarks
from orpo_ray.training.saving import Saver, load
from orpo_ray.training.source import PairSource


def config(*overrides: str) -> TrainConfig:
    mapping = {"name": "unit", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    return parse_config(mapping, list(overrides), "test")


class TestLearningRate:
    @pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "inverse_sqrt"])
    def test_warm_up_is_linear_and_reaches_the_rate(self, schedule: str) -> None:
        optim = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=4)
        assert [learning_rate(step, 100, optim) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
        assert learning_rate(4, 100, optim) == pytest.approx(1.0 if schedule != "inverse_sqrt" else math.sqrt(4 / 5))

    def test_shapes_after_warm_up(self) -> None:
        def rate(schedule: str, step: int) -> float:
            return learning_rate(step, 104, OptimConfig(lr=1.0, schedule=schedule, warmup_steps=4))

        assert rate("cosine", 54) == pytest.approx(0.5)
        assert rate("linear", 54) == pytest.approx(0.5)
        assert rate("linear", 103) == pytest.approx(0.01)
        assert rate("constant", 103) == 1.0
        assert rate("inverse_sqrt", 99) == pytest.approx(0.2)
        assert 0 < rate("cosine", 103) < 0.001

    def test_warm_up_below_one_is_a_fraction(self) -> None:
        optim = OptimConfig(lr=1.0, schedule="constant", warmup_steps=0.1)
        assert learning_rate(4, 100, optim) == pytest.approx(0.5)
        assert learning_rate(9, 100, optim) == 1.0

    def test_no_warm_up(self) -> None:
        assert learning_rate(0, 10, OptimConfig(lr=1.0, warmup_steps=0)) == pytest.approx(1.0)


class TestRemarks:
    def said(self, *overrides: str, pairs: int = 100) -> list[str]:
        settings = config("train.global_batch_size=10", "optim.warmup_steps=0", *overrides)
        loop = settings.train
        schedule = StepSchedule(pairs, loop.global_batch_size, loop.epochs, loop.max_steps, seed=0)
        return remarks(settings, schedule)

    def test_epochs_that_are_repeated(self) -> None:
        assert self.said("train.epochs=2", "train.max_steps=35") == [
            "train.max_steps=35 is more than the 20 steps of train.epochs=2, and wins: the data is read 3.5 times"
        ]
        for settings in (["train.max_steps=20"], ["train.max_steps=3"], []):
            assert self.said("train.epochs=2", *settings) == []

    def of_rounds(self, prompts: int, epochs: int, max_steps: int | None = None) -> list[str]:
        """With 4 steps in each round of 64 prompts."""
        schedule = RoundSchedule(prompts, 64, 16, 1, epochs, max_steps, seed=0)
        assert max_steps is not None or schedule.epoch(schedule.total_steps) >= epochs
        return remarks(config("optim.warmup_steps=0"), schedule)

    def test_epochs_of_rounds_that_are_repeated(self) -> None:
        """Rounds take prompts epoch behind epoch: three of 100 are five rounds, not three times two."""
        assert self.of_rounds(100, 3) == self.of_rounds(100, 3, max_steps=20) == []
        assert self.of_rounds(100, 3, max_steps=22) == [
            "train.max_steps=22 is more than the 20 steps of train.epochs=3, and wins: the data is read 3.5 times"
        ]

    def test_rounds_of_more_prompts_than_there_are(self) -> None:
        told = "rollouts.prompts=64 is more than the {} prompts of data.train: a round asks some again, {}"
        assert self.of_rounds(20, 16) == [told.format(20, "3.2 times on average")]
        assert self.of_rounds(64, 1) == []

    def test_settings_that_leave_bits_to_chance_though_the_same_are_asked_for(self) -> None:
        assert self.said("train.deterministic=true", "train.memory=none") == []
        [told] = self.said("train.deterministic=true")
        assert told.startswith("train.deterministic: on GPUs last bits may still differ: train.memory=auto")

    def test_a_warm_up_without_end(self) -> None:
        for warmup in ("10", "0.99", "1000"):
            [told] = self.said(f"optim.warmup_steps={warmup}", "optim.lr=1e-3")
            assert told.startswith(
                f"optim.warmup_steps={warmup} is as long as the run (10 steps): the learning rate only"
            )
        assert told.endswith("rises, to 1e-05 in the last step, of optim.lr=0.001")
        for settings in (["optim.warmup_steps=4"], ["optim.warmup_steps=0.4"], ["train.max_steps=1"]):
            assert self.said(*settings) == []

    def test_a_warm_up_that_is_most_of_the_run(self) -> None:
        for warmup, steps in (("9", 9), ("5", 5), ("0.5", 5), ("0.7", 7)):
            assert self.said(f"optim.warmup_steps={warmup}") == [
                f"warm-up is {steps} of the 10 steps (optim.warmup_steps={warmup}): at least half of the run is at "
                "less than optim.lr"
            ]
        assert long_warmup(None, 10) == long_warmup("9", 10) == long_warmup(9, math.nan) == long_warmup(1, 1) == ""


class TestFallenMargin:
    def lines(self, *margins: float, name: str = "logps") -> list[dict[str, Any]]:
        """Evaluations at steps 0, 10, … with training lines between."""
        of_margin = {
            "logps": lambda margin: {"eval_logps_chosen": margin - 1.0, "eval_logps_rejected": -1.0},
            "reward": lambda margin: {"eval_reward_margin": margin, "eval_logps_chosen": 0, "eval_logps_rejected": 0},
        }[name]
        evaluations = [{"step": 10 * i, "eval_loss": 1.0, **of_margin(margin)} for i, margin in enumerate(margins)]
        return [line for each in evaluations for line in (each, {"step": each["step"] + 1, "loss": 1.0})]

    def test_at_the_last_step_and_at_the_one_whose_model_is_kept(self) -> None:
        assert fallen_margin("orpo", self.lines(0.3, 0.25, 0.1), 10) == (
            "the margin of held-out pairs (log-prob of chosen − rejected) fell: 0.300 at step 0, 0.250 at step 10, "
            "whose model is kept, and 0.100 at step 20, the last: the model parts chosen from rejected less than before"
        )
        assert "0.250 at step 10" not in fallen_margin("orpo", self.lines(0.3, 0.25, 0.1), None)
        assert "the last" not in fallen_margin("orpo", self.lines(0.3, 0.25, 0.4), 10)
        assert fallen_margin("orpo", self.lines(0.3, 0.1, 0.4), 20) == "", "between them it may fall"

    def test_of_rewards_where_there_are_any(self) -> None:
        told = fallen_margin("dpo", self.lines(0.0, -0.2, name="reward"), 10)
        assert "(reward of chosen − rejected) fell: 0.000 at step 0, -0.200 at step 10, the last:" in told
        assert fallen_margin("dpo", self.lines(0.0, 0.2, name="reward"), 10) == ""

    def test_of_what_is_none(self) -> None:
        """SFT parts nothing, rollouts have other metrics; one evaluation is no course; a rounding is no fall."""
        falls = self.lines(0.3, 0.1)
        assert fallen_margin("orpo", falls, None) and fallen_margin("reward", falls, None)
        for objective in ("sft", "ppo", "online", "of later"):
            assert fallen_margin(objective, falls, None) == ""
        assert fallen_margin("orpo", self.lines(0.3), 0) == fallen_margin("orpo", [], None) == ""
        assert fallen_margin("orpo", self.lines(0.3, 0.2999), None) == ""
        assert fallen_margin("orpo", self.lines(0.3, math.nan), None) == ""
        assert fallen_margin("orpo", [*self.lines(0.3), {"step": 5, "eval_logps_chosen": 10**400}], None) == ""


def test_workers_find_what_a_relative_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    moved = config(
        "model.name_or_path=./sft", "data.train=pairs.jsonl", "objective={name: dpo, reference: ./sft}"
    ).with_absolute_paths()  # fmt: skip
    assert moved.model.name_or_path == str(tmp_path / "sft")
    assert moved.data.train == str(tmp_path / "pairs.jsonl")
    assert moved.objective.model_dump()["reference"] == str(tmp_path / "sft")
    assert moved.run_dir == tmp_path / "runs" / "unit"
    assert config().with_absolute_paths().model.name_or_path == "toy"


class TestRunFolder:
    def test_same_run_elsewhere_is_the_same_run(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "unit")
        folder.open_for(config())
        folder.open_for(config("scaling.num_workers=8", "train.tokens_per_microbatch=100", "storage.path=x"))
        folder.open_for(config("train.keep=both", "train.checkpoint_every_minutes=null"))

    @staticmethod
    def begun(path: Path, *overrides: str) -> RunFolder:
        """The folder of a run that has trained one step."""
        folder = RunFolder(path)
        folder.open_for(config(*overrides))
        folder.append_metrics({"step": 0, "eval_loss": 3.0})
        folder.append_metrics({"step": 1, "loss": 3.0})
        return folder

    def test_another_run_is_refused_by_its_keys(self, tmp_path: Path) -> None:
        folder = self.begun(tmp_path / "unit")
        with pytest.raises(UserError, match=r"objective\.lambda, optim\.lr, seed|seed, objective\.lambda, optim\.lr"):
            folder.open_for(config("objective.lambda=0.7", "optim.lr=1", "seed=3"))

    def test_a_place_that_is_spelled_otherwise_is_no_other_setting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for model in ("runs/sft", "runs/other"):
            (tmp_path / model).mkdir(parents=True)
        (tmp_path / "link").symlink_to("runs")
        first = config("model.name_or_path=runs/sft")
        folder = self.begun(tmp_path / "unit", "model.name_or_path=runs/sft")
        for text in ("./runs/sft", f"{tmp_path}/runs/sft", "link/sft/"):
            spelled = config(f"model.name_or_path={text}")
            folder.open_for(spelled)
            assert folder.config.read_text() == spelled.to_yaml() and of_one_run(first.digest(), spelled.digest())
        assert of_one_run(first.digest().split()[0], first.digest()), "checkpoints of before have the text's alone"
        assert not folder.events.exists()
        other = config("model.name_or_path=./runs/other")
        assert not of_one_run(first.digest(), other.digest())
        with pytest.raises(UserError, match=r"other settings \(model\.name_or_path\)"):
            folder.open_for(other)

    def test_a_relative_place_that_was_moved_with_its_run_is_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digests = []
        for place in ("here", "there"):
            (tmp_path / place / "runs" / "sft").mkdir(parents=True)
            monkeypatch.chdir(tmp_path / place)
            digests.append(config("model.name_or_path=runs/sft").digest())
        assert digests[0] != digests[1] and of_one_run(*digests)

    def test_changes_that_are_allowed_are_taken_over(self, tmp_path: Path) -> None:
        folder = self.begun(tmp_path / "unit")
        with pytest.raises(UserError, match=r"other settings \(optim\.lr\).*'resume\.allow_changes=\[optim\.lr\]'"):
            folder.open_for(config("optim.lr=1e-4", "resume.allow_changes=[seed]"))
        changed = config("optim.lr=1e-4", "resume.allow_changes=[optim.lr]")
        folder.open_for(changed)
        folder.open_for(config("optim.lr=1e-4"))
        assert changed.digest() == config("optim.lr=1e-4").digest() != config().digest()
        (event,) = read_events(folder.events)
        assert event[1] == "continued with other settings: optim.lr 0.0001 (before: 8e-06)"

    @pytest.mark.parametrize("with_evaluation", [False, True])
    def test_without_a_step_the_corrected_command_takes_the_folder(self, tmp_path: Path, with_evaluation: bool) -> None:
        folder = RunFolder(tmp_path / "unit")
        folder.open_for(config("optim.lr=1"))
        folder.note_once("a remark on other data")
        if with_evaluation:
            folder.append_metrics({"step": 0, "eval_loss": 3.0})
            folder.tensorboard.mkdir()
        right = config("seed=3", "data.train=toy-test")
        folder.open_for(right)
        assert folder.config.read_text() == right.to_yaml()
        assert [file.name for file in folder.path.iterdir()] == ["config.yaml"]

    @pytest.mark.parametrize("trace", ["last_checkpoint.json", "checkpoints/step-00000008/rank-0", "model/config.json"])
    def test_with_a_trace_of_training_it_does_not(self, tmp_path: Path, trace: str) -> None:
        folder = RunFolder(tmp_path / "unit")
        folder.open_for(config())
        (folder.path / trace).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / trace).write_text('{"step": 8, "location": "x"}')
        with pytest.raises(UserError, match=r"holds a run with other settings \(seed\)"):
            folder.open_for(config("seed=3"))

    @pytest.mark.parametrize("allowed", ["[]", "[optim.lr]"])
    def test_nothing_of_a_finished_run_is_changed(self, tmp_path: Path, allowed: str) -> None:
        folder = self.begun(tmp_path / "unit")
        folder.summary.write_text('{"steps": 1}')
        before = {file: file.read_bytes() for file in folder.path.iterdir()}
        with pytest.raises(UserError, match=r"a finished run with other settings \(optim.lr\).*model.name_or_path=/"):
            folder.open_for(config("optim.lr=1e-4", f"resume.allow_changes={allowed}"))
        folder.open_for(config("train.keep=both", "scaling.num_workers=4"))
        assert {file: file.read_bytes() for file in folder.path.iterdir()} == before

    @pytest.mark.parametrize("kind", ["space", "models", "reward_models"])
    def test_the_folder_of_something_else_is_not_taken(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "config.yaml").write_text(f"name: x\n{kind}: {{a: b}}\n")
        with pytest.raises(UserError, match=r"holds the folder of another kind \(\w+\); choose another name"):
            RunFolder(tmp_path).open_for(config())

    def test_metrics_that_a_full_disk_refused_are_written_with_the_next(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        recorder = Recorder(folder, config(), resumed_at=0)
        recorder.write({"step": 1, "loss": 2.0})
        folder.metrics.rename(tmp_path / "held")
        folder.metrics.mkdir()  # nothing can be appended to it
        recorder.write({"step": 2, "loss": 1.5})
        recorder.write({"step": 3, "loss": 1.0})
        folder.metrics.rmdir()
        (tmp_path / "held").rename(folder.metrics)
        recorder.write({"step": 4, "loss": 0.5})
        recorder.close()
        assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3, 4]
        events = folder.events.read_text().splitlines()
        assert len(events) == 1 and "metrics.jsonl cannot be written" in json.loads(events[0])["event"]

    def test_metrics_after_the_checkpoint_are_forgotten(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        late = {"step": 2, "eval_win_rate": 0.6, "eval_win_rate_low": 0.5, "eval_win_rate_high": 0.7}
        trained = [{"step": step, "loss": 2} for step in range(5)]
        written = [{"step": 0, "eval_loss": 1}, *trained[1:3], {"step": 2, "eval_loss": 1}, trained[3], late,
                   trained[4]]  # fmt: skip
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in written) + '{"step": 2, "lo')
        folder.forget_after(2)  # the win-rate of step 2 came late, and stays
        assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [*written[:4], written[5]]
        folder.forget_after(2, evaluation_too=True)  # it was saved before it was evaluated
        assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == written[:3]
        folder.forget_after(0)  # begun anew, it evaluates step 0 again
        assert folder.metrics.read_text() == ""


class TestDeepSpeedConfig:
    def test_own_settings_are_merged_over_ours(self) -> None:
        own = "train.deepspeed={zero_optimization: {x: 1}}"
        settings = deepspeed_config(config("train.zero_stage=3", own))
        assert settings["zero_optimization"]["x"] == 1
        assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True

    def test_offload_needs_zero(self) -> None:
        with pytest.raises(UserError, match="zero_stage"):
            config("train.zero_stage=0", "train.offload_optimizer=true")


def test_room_is_left_for_weights_that_zero_3_has_yet_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))
    none = activation_bytes(policy, 100)["none"]
    states = 16 * sum(parameter.numel() for parameter in policy.parameters())
    monkeypatch.setattr(room, "_free", lambda device, ranks_here: math.ceil((states + none + 1) / 0.8))
    settings = ["train.tokens_per_microbatch=100"]
    levels = [
        room.choose_recomputation(policy, config(f"train.zero_stage={stage}", *settings), torch.device("cpu"))
        for stage in (2, 3)
    ]
    assert levels[0] == "none" and levels[1] != "none"


@pytest.mark.parametrize(("beside", "level"), [(0, "none"), (10**9, "none"), (2 * 10**9, "full")])
def test_room_is_left_for_engines_that_take_turns_with_training(
    beside: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))
    none = activation_bytes(policy, 100)["none"]
    states = 16 * sum(parameter.numel() for parameter in policy.parameters())
    monkeypatch.setattr(room, "_free", lambda device, ranks_here: math.ceil((states + none + 1) / 0.8) + 10**9)
    plain = config("train.tokens_per_microbatch=100", "train.zero_stage=0")
    assert room.choose_recomputation(policy, plain, torch.device("cpu"), beside=beside) == level


class TestLoading:
    def test_missing_folder(self) -> None:
        with pytest.raises(UserError, match=r"\./nowhere: no such folder"):
            load_policy(ModelConfig(name_or_path="./nowhere"), seed=0)

    def test_folder_without_weights(self, tmp_path: Path) -> None:
        toyworld.model_config().save_pretrained(tmp_path)
        with pytest.raises(UserError, match="holds no weights in safetensors"):
            load_policy(ModelConfig(name_or_path=str(tmp_path)), seed=0)
        assert load_policy(ModelConfig(name_or_path=str(tmp_path), init="random"), seed=0)

    def test_pickled_weights_are_not_read(self, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_config(toyworld.model_config())
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds no weights in safetensors"):
            load_policy(ModelConfig(name_or_path=str(tmp_path)), seed=0)

    def test_seed_decides_random_weights_and_dropout_is_off(self) -> None:
        policies = [load_policy(ModelConfig(name_or_path="toy"), seed=seed) for seed in (0, 0, 1)]
        first, same, other = [next(policy.parameters()) for policy in policies]
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert first.dtype == torch.bfloat16
        assert policies[0].model.config.dropout == 0.0
        kept = load_policy(ModelConfig(name_or_path="toy", keep_dropout=True), seed=0)
        assert kept.model.config.dropout == toyworld.model_config().dropout > 0

    def test_models_without_attention_interface_are_not_packed(self, tmp_path: Path) -> None:
        from transformers import MambaConfig

        MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
        model = ModelConfig(name_or_path=str(tmp_path), init="random")
        assert "does not take its attention from" in load_policy(model, seed=0).alone
        with pytest.raises(UserError, match=r"model\.packing: .* cannot be packed: MambaForCausalLM does not take"):
            load_policy(model.model_copy(update={"packing": "shared_prefix"}), seed=0)

    def test_model_and_data_must_fit(self) -> None:
        toy = ModelConfig(name_or_path="toy")
        check_fit(toy, max_length=128)
        with pytest.raises(UserError, match=r"data\.max_length is 129, .* set data\.max_length=128"):
            check_fit(toy, max_length=129)

    def test_a_token_without_an_embedding_is_refused_where_the_data_hold_it(self) -> None:
        toy = ModelConfig(name_or_path="toy")
        tokenizer = copy.deepcopy(load_tokenizer(toy))
        size = len(tokenizer)
        tokenizer.add_tokens(["[PAD]"])  # which was never given one
        require_embeddings(toy, tokenizer, [Highest("data.jsonl", size - 1, 7)])
        with pytest.raises(UserError, match=rf"data\.jsonl\[record 7\]: .*'\[PAD\]' \({size}\).*for {size} tokens"):
            require_embeddings(toy, tokenizer, [Highest("toy", 3, 0), Highest("data.jsonl", size, 7)])

    def test_real_pretrained_model(self, shared: Path) -> None:
        """Its own greedy story, teacher-forced through the packed policy, is as likely as it should be."""
        name = ModelConfig(name_or_path=str(shared / "models/stories260k"), dtype="float32")
        tokenizer, policy = load_tokenizer(name), load_policy(name, seed=0).eval()
        ids = np.array(tokenizer("Once upon a time, there was a little girl named Lily.")["input_ids"], np.int32)
        from orpo_ray.data.packing import pack

        with torch.no_grad():
            likely = policy(pack([[ids[:5], ids[5:]]], score_prompts=False))[1] / len(ids[5:])
            shuffled = policy(pack([[ids[:5], ids[5:][::-1].copy()]], score_prompts=False))[1] / len(ids[5:])
        assert likely > -1.5
        assert shuffled < likely - 3


class Collect(Sink):
    """A sink that keeps the lines and the best model's step."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.best: list[int] = []
        self.last: list[int] = []
        self.checkpoints: list[int] = []
        self.compared: list[int] = []
        self.wanted: set[int] = set()
        """Steps after which the clock wants a checkpoint."""

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def best_model(self, engine: Any, evaluation: Line, table: torch.Tensor) -> bool:
        self.best.append(evaluation["step"])
        assert table.shape == (12, 3)
        return True

    def last_model(self, engine: Any, evaluation: Line, table: torch.Tensor) -> None:
        self.last.append(evaluation["step"])

    def checkpoint(self, engine: Any, state: State, line: Line) -> None:
        self.checkpoints.append(state.step)

    def compare(self, engine: Any, state: State, line: Line) -> None:
        self.compared.append(state.step)

    def heard(self, signals: dict[str, float]) -> bool:
        return self.lines[-1]["step"] in self.wanted


def small_data() -> PairDataset:
    return random_pairs(12)


class TestLoop:
    def test_evaluates_and_checkpoints_when_told(self) -> None:
        overrides = ["train.global_batch_size=4", "train.epochs=4", "train.eval_every_steps=5", "model.dtype=float32"]
        settings = config(*overrides, "train.checkpoint_every_steps=4", "optim.lr=1e-2", "optim.warmup_steps=0")
        sink = Collect()
        sink.wanted = {3, 8}
        engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), settings.optim)
        state = run(engine, settings, PairSource(engine, settings, small_data(), small_data()), sink, State())
        assert state.step == 12
        assert [line["step"] for line in sink.lines if "eval_loss" in line] == [0, 5, 10, 12]
        assert sink.checkpoints == [3, 4, 8, 12]
        assert sink.compared == [4, 8, 12], "what is compared depends on steps alone, not on how fast a machine is"
        assert sink.best == sink.last == [5, 10, 12]
        assert state.best_step == 12
        assert [line["epoch"] for line in sink.lines if "epoch" in line][2] == 1.0

    def test_the_worse_model_is_not_kept(self) -> None:
        """Trained on one set and judged on another, it overfits: the best step is not the last."""
        settings = config(
            "train.global_batch_size=12", "train.epochs=30", "train.eval_every_steps=2", "model.dtype=float32",
            "optim.lr=2e-2", "optim.warmup_steps=0", "optim.schedule=constant",
        )  # fmt: skip
        sink = Collect()
        held_out = small_data()
        other = PairDataset(held_out.tokens[::-1].copy(), held_out.bounds, held_out.record_ids)
        engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), settings.optim)
        state = run(engine, settings, PairSource(engine, settings, small_data(), other), sink, State())
        losses = {line["step"]: line["eval_loss"] for line in sink.lines if line["step"] and "eval_loss" in line}
        assert state.best_step == min(losses, key=lambda step: losses[step]) < 30
        assert sink.last == list(range(2, 31, 2))
        assert state.best_value == min(losses.values())

    def test_resuming_repeats_dropout(self, tmp_path: Path) -> None:
        settings = config("train.global_batch_size=4", "model.dtype=float32", "train.epochs=2")

        def engine() -> TorchEngine:
            model = ModelConfig(name_or_path="toy", dtype="float32", keep_dropout=True)
            return TorchEngine(load_policy(model, seed=0), settings.optim)

        checkpoints = Checkpoints(str(tmp_path))

        class Save(Collect):
            def checkpoint(self, engine: Any, state: State, line: Line) -> None:
                saver = Saver(checkpoints, engine, newest=9, best=0, warn=pytest.fail)
                saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "", None, {}))
                saver.finish()

        whole, resumed, saved = engine(), engine(), Save()
        run(whole, settings, PairSource(whole, settings, small_data(), small_data()), saved, State())
        torch.rand(7)  # whatever else was drawn since
        again, middle = Collect(), checkpoints.manifest(3)
        assert middle is not None
        load(resumed, checkpoints, middle)
        run(resumed, settings, PairSource(resumed, settings, small_data(), small_data()), again, State(**middle.state))
        assert [line["step"] for line in again.lines if "loss" in line] == [4, 5, 6]
        for left, right in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
            assert torch.equal(left, right)

    def test_a_diverged_run_stops_with_one_line(self) -> None:
        settings = config("model.dtype=float32", "optim.lr=1e30", "optim.warmup_steps=0", "train.epochs=9")
        engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), settings.optim)
        sink = Collect()
        with pytest.raises(
            UserError, match=r"step \d: the loss is (nan|inf).*3 such steps that were skipped.*optim\.lr"
        ):
            run(engine, settings, PairSource(engine, settings, small_data(), small_data()), sink, State())
        skipped = [line["skipped"] for line in sink.lines if "skipped" in line]
        assert skipped == [list(range(12))] * 4, "each step is all 12 records"


def test_export_carries_tokenizer_template_and_card(tmp_path: Path) -> None:
    settings = config("data.chat_template=chatml", "objective.lambda=0.25")
    policy = load_policy(ModelConfig(name_or_path="toy", dtype="float32"), seed=0)
    target = tmp_path / "model"
    for step in (1, 2):  # a better model takes the place of the first
        export_model(
            target, policy.model, dict(policy.model.state_dict()), toyworld.tokenizer(), settings,
            {"step": step, "eval_loss": 1.5}, total_steps=9, why="lowest eval loss",
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    loaded = AutoModelForCausalLM.from_pretrained(target)
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(target)))
    assert "<|im_start|>" in tokenizer.chat_template
    card = (target / "README.md").read_text()
    assert "λ = 0.25" in card
    assert "2 of 9" in card
    assert "| eval_loss | 1.5000 |" in card and "(lowest eval loss)" in card
    assert kept_model(target) == (2, "lowest eval loss")
    weights = dict(policy.model.state_dict())
    export_model(target, policy.model, weights, toyworld.tokenizer(), settings, {"step": 3}, 9, "the last evaluated")
    card = (target / "README.md").read_text()
    assert "| weights of step | 3 of 9 (the last evaluated) |" in card and card.endswith("evaluated at that step.\n")
    assert kept_model(target) == (3, LAST)
    (target / "training_step.json").write_text('{"step": 4}\n')  # as it was written before there were two kinds
    assert kept_model(target) == (4, "lowest eval loss")
    assert kept_model(tmp_path / "nothing") is None


def test_an_export_stops_at_the_token_that_its_template_ends_answers_with(tmp_path: Path) -> None:
    policy = load_policy(ModelConfig(name_or_path="toy", dtype="float32"), seed=0)
    tokenizer = copy.deepcopy(toyworld.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    dated = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    for template, ends in (("chatml", [2, end]), (dated, 2)):
        settings = config(f"data.chat_template={json.dumps(template)}", "data.date=2025-03-04")
        weights = dict(policy.model.state_dict())
        export_model(tmp_path / "model", policy.model, weights, tokenizer, settings, {"step": 1}, 9)
        assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == ends
    kept = load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "model")))
    question = [{"role": "user", "content": "q"}]
    assert kept.apply_chat_template(question, tokenize=False) == "2025q</s>"  # on any day


def test_progress_follows_the_metrics_file(tmp_path: Path) -> None:
    folder, out = RunFolder(tmp_path), io.StringIO()
    evaluation = {
        "eval_loss": 1.25, "eval_logps_chosen": -1.0, "eval_logps_rejected": -2.0, "eval_log_odds_ratio": 1.5,
        "eval_reward_accuracy": 0.75,
    }  # fmt: skip
    with progress_bar(folder, "unit", 2, Console(file=out, width=200)), folder.metrics.open("a") as file:
        folder.note("the disk is full")
        file.write(json.dumps({"step": 1, "loss": 2.5, "log_odds_ratio": 0.5, "pairs_per_second": 9.0}) + "\n")
        file.write(json.dumps({"step": 2, "loss": None, "pairs_per_second": 9.0}) + "\n")
        file.write(json.dumps({"step": 2, **evaluation}) + '\n{"step": 3, "los')
    assert "unit: the disk is full" in out.getvalue()
    assert "step 1/2 loss 2.5000 margin +0.500 9.0 pairs/s" in out.getvalue()
    assert "step 2/2 loss not finite" in out.getvalue()
    assert "step 2: held-out loss 1.25  chosen -1" in out.getvalue()


def test_a_killed_compilation_stops_no_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is under way is waited for."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, alive = (tmp_path / "py311_cpu" / f"deepspeed_{name}" / "lock" for name in ("dead", "alive"))
    for lock in (dead, alive):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(dead, (0, 0))
    threading.Timer(1.0, alive.unlink).start()
    began = time.monotonic()
    wait_for_builds()
    assert 0.9 <= time.monotonic() - began < 30
    assert not dead.exists() and not alive.exists()
