"""`orpo-ray train` through the real stack: Ray Train, DeepSpeed, the packed core, real processes."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from file_modes import unlike_the_umask
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import TrainConfig, load_config, parse_config
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.prepare import prepare
from orpo_ray.data.templates import TEXT_RULE, read_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.in_training import validate_checkpoint
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.report import write_report
from orpo_ray.status.read import read_status
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.run_folder import LAST, kept_model
from orpo_ray.terminal import Console
from orpo_ray.training.from_checkpoint import export_checkpoint
from orpo_ray.training.launcher import train

REPOSITORY = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)  # of the single texts that are scored here: more cost more than they bring

TOY: dict[str, Any] = {
    "name": "toy",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64},
    "objective": {"lambda": 1.0},
    "optim": {"lr": 1e-3, "warmup_steps": 5},
    "train": {"max_steps": 24, "global_batch_size": 32, "eval_every_steps": 8, "checkpoint_every_steps": 8},
    "scaling": {"num_workers": 2},
}


TIMING = {"pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes"}
ALLOWED = "resume.allow_changes=[train.max_steps]"


def toy(storage: Path, *overrides: str) -> TrainConfig:
    return parse_config({**TOY, "storage": {"path": str(storage)}}, list(overrides), "test")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def plain(run: Path) -> list[dict[str, Any]]:
    """Its lines without timings."""
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines(run)]


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "eval_loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto").state_dict())


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(ray_cluster: None, storage: Path) -> Path:
    """An undisturbed run on two workers, ZeRO-2."""
    return train(toy(storage)).path


def test_run_folder_is_complete_and_the_model_learns(run: Path) -> None:
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    expected = {
        "step", "epoch", "loss", "nll", "odds_ratio_loss", "log_odds_ratio", "logps_chosen", "logps_rejected",
        "reward_accuracy", "lr", "grad_norm", "tokens", "pairs_per_second", "tokens_per_second", "mfu",
        "peak_memory_bytes",
    }  # fmt: skip
    assert set(steps[0]) == expected
    assert all(0 < line["mfu"] < 1.5 for line in steps)
    held_out = evaluations(run)
    assert [line["step"] for line in held_out] == [0, 8, 16, 24]
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"] - 1
    assert held_out[-1]["eval_log_odds_ratio"] > held_out[0]["eval_log_odds_ratio"] + 0.2
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["best_step"], summary["workers"]) == (24, 24, 2)
    assert summary["eval_loss"] == held_out[-1]["eval_loss"]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 25))
    card = (run / "model" / "README.md").read_text()
    assert "λ = 1.0" in card and "step | 24 of 24" in card.replace("weights of ", "")
    assert unlike_the_umask(run) == {}


def test_every_worker_logs_lines_with_run_rank_and_step(run: Path) -> None:
    node: Any = ray._private.worker._global_node
    files = Path(node.get_logs_dir_path()).glob("worker-*.err")
    said = [json.loads(text) for file in files for text in file.read_text().splitlines() if text.startswith('{"time"')]
    own = [line for line in said if line["run"] == run.name and line["role"] == "trainer"]
    for rank in (0, 1):
        events = {line["event"]: line for line in own if line["rank"] == rank}
        assert events["worker started"]["ranks"] == 2 and events["training begins"]["step"] == 0
        assert events["training ends"]["step"] == events["training ends"]["best_step"] == 24
    held_out = [line for line in own if line["event"] == "evaluation"]
    assert [(line["rank"], line["step"]) for line in held_out] == [(0, 0), (0, 8), (0, 16), (0, 24)]
    assert [line["eval_loss"] for line in held_out] == [line["eval_loss"] for line in evaluations(run)]


def test_model_loads_as_any_other_and_scores_as_evaluated(run: Path, storage: Path) -> None:
    """A plain Hugging Face forward over the held-out pairs gives the run's own numbers."""
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert (run / "model" / TEXT_RULE).is_file()
    assert not read_text_rule(run / "model"), "text went to it as it stands"
    config = toy(storage)
    held_out = prepare(config, load_tokenizer(config.model)).eval
    assert tokenizer.decode(held_out.pair(0)[0]) == load_tokenizer(config.model).decode(held_out.pair(0)[0])
    means = {1: [], 2: []}
    for index in range(60):
        ids = [torch.from_numpy(part).long() for part in held_out.pair(index)]
        for side in (1, 2):
            row = torch.cat([ids[0], ids[side]])
            with torch.no_grad():
                logps = model(row[None]).logits[0, :-1].log_softmax(-1).gather(1, row[1:, None])
            means[side].append(logps[len(ids[0]) - 1 :].mean().item())
    best = evaluations(run)[-1]
    # 60 of 400 pairs: the means agree to their sampling error, the sign of the margin surely.
    assert sum(means[1]) / 60 == pytest.approx(best["eval_logps_chosen"], abs=0.15)
    assert sum(means[2]) / 60 == pytest.approx(best["eval_logps_rejected"], abs=0.25)


def test_finished_run_is_left_alone_and_other_settings_are_refused(run: Path, storage: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    train(toy(storage))
    assert (run / "metrics.jsonl").read_bytes() == before
    settings = (run / "config.yaml").read_bytes()
    for allowed in ("[]", "[optim.lr]"):
        with pytest.raises(UserError, match=r"holds a finished run with other settings \(optim\.lr\)"):
            train(toy(storage, "optim.lr=5e-4", f"resume.allow_changes={allowed}"))
    printed = io.StringIO()
    train(toy(storage, "train.keep=both"), Console(file=printed, width=400))
    assert printed.getvalue() == f"{run}: already finished; of no effect: train.keep\n"
    assert (run / "config.yaml").read_bytes() == settings


def test_a_finished_run_goes_on_as_a_longer_one_would_have(ray_cluster: None, storage: Path) -> None:
    """In every bit, where the learning rate does not depend on the end."""
    settings = [
        "optim.schedule=constant", "train.eval_every_steps=2", "scaling.num_workers=1", "train.zero_stage=0",
        "data.limit=300",
    ]  # fmt: skip
    undisturbed = train(toy(storage, "name=long", "train.max_steps=4", *settings)).path
    train(toy(storage, "name=short", "train.max_steps=2", *settings))
    with pytest.raises(UserError, match=r"give it more with 'resume.allow_changes=\[train.max_steps\]'"):
        train(toy(storage, "name=short", "train.max_steps=4", *settings))
    folder = train(toy(storage, "name=short", "train.max_steps=4", *settings, ALLOWED)).path
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4
    assert plain(folder) == plain(undisturbed)
    expected = weights(undisturbed)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(folder).items())


def test_a_run_whose_model_could_not_be_kept_is_not_finished(ray_cluster: None, storage: Path) -> None:
    config = toy(storage, "name=unkept", "data.limit=64", "train.max_steps=2", "train.eval_every_steps=2")
    folder = config.run_dir
    (folder / "eval_scores.parquet").mkdir(parents=True)  # where a file is to be
    with pytest.raises(UserError, match=r"left no model/training_step\.json, so the run is not finished"):
        train(config)
    assert not (folder / "summary.json").exists()
    assert "the model of step 2 was not kept" in (folder / "events.jsonl").read_text()


def test_zero3_in_bfloat16_trains_and_exports(ray_cluster: None, storage: Path) -> None:
    config = toy(
        storage, "name=zero3", "train.zero_stage=3", "model.dtype=bfloat16", "train.max_steps=8",
        "train.memory=full", "objective={name: sft}",
        "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}",
    )  # fmt: skip
    folder = train(config).path
    held_out = evaluations(folder)
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"] - 0.3
    exported = weights(folder)
    assert exported["lm_head.weight"].dtype == torch.bfloat16
    assert exported["lm_head.weight"].abs().sum() > 0
    assert torch.equal(exported["lm_head.weight"], exported["model.decoder.embed_tokens.weight"])
    # What is made of the shards of both ranks, without Ray, is what they made together.
    assert load_file(export_checkpoint(folder) / "model.safetensors").keys() == exported.keys() - {"lm_head.weight"}
    for parameter, weight in load_file(folder / "model-step-8" / "model.safetensors").items():
        assert torch.equal(weight, exported[parameter]), parameter
    # SFT packs the chosen response alone, so its training lines know nothing of rejected ones.
    assert "logps_rejected" not in lines(folder)[1]


def test_adapters_under_zero3_are_exported_merged_and_apart(run: Path, storage: Path) -> None:
    base_folder = Path(shutil.copytree(run / "model", storage / "base"))
    config = toy(
        storage, "name=lora", f"model.name_or_path={base_folder}", "model.lora={rank: 4}", "train.zero_stage=3",
        "train.max_steps=6", "train.eval_every_steps=6", "train.checkpoint_every_steps=6", "optim.lr=5e-3",
        "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}",
    )  # fmt: skip
    folder = train(config).path
    held_out = evaluations(folder)
    assert held_out[0]["eval_loss"] == pytest.approx(evaluations(run)[-1]["eval_loss"], abs=1e-5)
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"] - 0.05
    before, merged = weights(run), weights(folder)
    assert before.keys() == merged.keys()
    matrices = {f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")}
    for parameter, weight in merged.items():
        adapted = ".".join(parameter.split(".")[-2:]) in matrices
        assert torch.equal(weight, before[parameter]) == (not adapted), parameter
    base = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    over_base = PeftModel.from_pretrained(base, folder / "adapter").eval()
    whole = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(over_base(ids).logits, whole(ids).logits, rtol=0, atol=1e-4)
    # Nor does the checkpoint hold the base: float32 adapters and both of Adam's moments, and a little beside.
    adapters = sum(weight.numel() for name, weight in over_base.state_dict().items() if ".lora_" in name)
    checkpoint = sum(f.stat().st_size for f in (folder / "checkpoints/step-00000006").rglob("*") if f.is_file())
    held = sum(weight.numel() for weight in before.values())
    assert 12 * adapters < checkpoint < 20 * adapters < 4 * held
    _assert_training_goes_on_from_the_adapter(folder, storage)
    _assert_continued_over_no_other_base(config, base_folder)


def _assert_training_goes_on_from_the_adapter(before: Path, storage: Path) -> None:
    config = toy(
        storage, "name=onward", f"model.name_or_path={before / 'adapter'}", "model.lora={rank: 2}", "train.max_steps=2",
        "train.zero_stage=2", "train.eval_every_steps=2", "optim.lr=5e-3",
    )  # fmt: skip
    folder = train(config).path
    assert evaluations(folder)[0]["eval_loss"] == pytest.approx(evaluations(before)[-1]["eval_loss"], abs=1e-4)
    card = (folder / "model" / "README.md").read_text()
    assert f"`{before.name}/adapter` (pretrained" in card and str(storage) not in card
    described = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    merged = Path(described["base_model_name_or_path"])
    assert merged.parent == storage / ".cache" / "merged"
    over_merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(merged), folder / "adapter").eval()
    whole = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(over_merged(ids).logits, whole(ids).logits, rtol=0, atol=1e-4)
    manifest = Checkpoints(str(folder / "checkpoints")).manifest(2)
    assert manifest is not None and manifest.weights.keys() == {"model.name_or_path"}
    exported = load_file(export_checkpoint(folder) / "model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in weights(folder).items() if name in exported)


def _assert_continued_over_no_other_base(config: TrainConfig, base: Path) -> None:
    """One that was retrained in place has the same name, and other weights."""
    (config.run_dir / "summary.json").unlink()
    weights = {name: weight.clone() for name, weight in load_file(base / "model.safetensors").items()}
    weights["model.decoder.final_layer_norm.bias"][0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^model\.name_or_path: the base's frozen weights are not those that the run"):
        train(config)


def test_dpo_starts_at_its_reference_and_computes_it_once(run: Path, storage: Path) -> None:
    settings = [f"model.name_or_path={run}", "objective={name: dpo}", "train.max_steps=6", "optim.lr=1e-4"]
    folder = train(toy(storage, "name=dpo", *settings)).path
    held_out = evaluations(folder)
    assert held_out[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert held_out[0]["eval_reward_margin"] == pytest.approx(0, abs=1e-4)
    assert held_out[-1]["eval_reward_margin"] > 0.01
    pieces = sorted((storage / ".cache" / "reference").glob("*/*.npy"))
    written = {path: path.stat().st_mtime_ns for path in pieces}
    assert written
    # A decay that takes away a fifth of the weights at the first step, and more at each after it.
    worse = ["train.max_steps=3", "train.eval_every_steps=1", "optim.weight_decay=2000", "optim.warmup_steps=0"]
    second = train(toy(storage, "name=dpo-again", *settings, "objective.beta=0.2", "train.keep=both", *worse)).path
    again = sorted((storage / ".cache" / "reference").glob("*/*.npy"))
    assert {path: path.stat().st_mtime_ns for path in again} == written
    manifest = Checkpoints(str(second / "checkpoints")).manifest(3)
    assert manifest is not None and manifest.weights.keys() == {"objective.reference"}
    # The best of its models and the last are two.
    losses = {line["step"]: line["eval_loss"] for line in evaluations(second) if line["step"]}
    assert losses[1] < losses[2] < losses[3]
    assert kept_model(second / "model") == (1, "lowest eval loss") and kept_model(second / "model-last") == (3, LAST)
    last = load_file(second / "model-last" / "model.safetensors")
    assert any(not torch.equal(weight, last[name]) for name, weight in weights(second).items() if name in last)
    for name, weight in load_file(export_checkpoint(second) / "model.safetensors").items():
        assert torch.equal(weight, last[name]), name


def test_reward_model_is_a_plain_classifier_centred_on_the_training_set(ray_cluster: None, storage: Path) -> None:
    config = toy(
        storage, "name=reward", "objective={name: reward, centre: true}", "data.limit=600", "train.max_steps=18",
        "train.eval_every_steps=18", "optim.lr=2e-3",
    )  # fmt: skip
    folder = train(config).path
    held_out = evaluations(folder)[-1]
    assert held_out["eval_reward_accuracy"] > 0.6
    assert {"eval_calibration_error", "eval_accuracy_chosen_longer", "eval_accuracy_chosen_shorter"} <= set(held_out)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    pairs = prepare(config, load_tokenizer(config.model))

    def rewards(data: PairDataset) -> np.ndarray:
        """(pairs, 2), one plain forward for each unpadded text."""
        scored = np.empty((len(data), 2))
        for index in range(len(data)):
            prompt, *responses = data.pair(index)
            for side, response in enumerate(responses):
                row = torch.from_numpy(np.r_[prompt, response]).long()[None]
                with torch.no_grad():
                    scored[index, side] = model(input_ids=row).logits.item()
        return scored

    assert abs(rewards(pairs.train).mean()) < 1e-4
    margins = np.diff(rewards(pairs.eval), axis=1)[:, 0] * -1
    assert margins.mean() == pytest.approx(held_out["eval_reward_margin"], abs=1e-4)
    assert (margins > 0).mean() == pytest.approx(held_out["eval_reward_accuracy"], abs=1e-6)


def test_checkpoints_are_compared_beside_training(run: Path, storage: Path) -> None:
    """Each checkpoint's win-rate over an earlier run, by the truth; what that run answered is asked for once."""
    asked = f"eval.win_rate={{against: {run}, reward_model: toy, prompts: 40, max_tokens: 40}}"
    config = toy(
        storage, "name=compared", f"model.name_or_path={run}", "train.max_steps=40", "train.checkpoint_every_steps=20",
        "train.eval_every_steps=20", asked,
    )  # fmt: skip
    folder = train(config, validation=validate_checkpoint).path
    found = {line["step"]: line for line in lines(folder) if "eval_win_rate" in line}
    assert sorted(found) == [20, 40]
    for line in found.values():
        assert line["eval_win_rate_low"] <= line["eval_win_rate"] <= line["eval_win_rate_high"]
    last = json.loads((folder / "win_rate" / "winrates.json").read_text())
    pair = next(pair for pair in last["pairs"] if pair["model"] == "policy")
    assert pair["win_rate"] == found[40]["eval_win_rate"] > 0.5, "64 steps of training are better than 24"
    labels = [path.name.rpartition("-")[0] for path in (folder / "win_rate" / "responses").iterdir()]
    assert sorted(labels) == ["against", "policy", "policy"]
    # Training went on meanwhile: its lines are those of a run that compared nothing.
    assert [line["step"] for line in lines(folder) if "loss" in line] == list(range(1, 41))
    assert "Against" in write_report(folder).read_text()


# A killed driver is in tests/faults/test_quick.py too.
@pytest.mark.parametrize(
    "how", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.long) for each in (signal.SIGTERM, signal.SIGKILL))]
)
def test_interrupted_run_continues_to_the_same_weights(
    run: Path, storage: Path, how: signal.Signals, beside_tests: dict[str, str]
) -> None:
    """The same command, typed again after Ctrl-C or a killed driver, ends in the same bits, on another cluster too.

    One that is asked to end leaves a checkpoint of where it is, whenever the next one would have been due.
    """
    name = f"interrupted-{how.name.lower()}"
    config = storage / f"{name}.yaml"
    every = 8 if how == signal.SIGKILL else 1000
    config.write_text(toy(storage, f"name={name}", f"train.checkpoint_every_steps={every}").to_yaml())
    command = [sys.executable, "-m", "orpo_ray.cli", "train", str(config)]
    folder = storage / name
    with (storage / f"{name}.log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        begun = folder / "checkpoints" if how == signal.SIGKILL else folder / "metrics.jsonl"
        while not (begun.exists() and (begun.is_dir() or '"step": 3,' in begun.read_text())):
            assert first.poll() is None and time.monotonic() < deadline, (storage / f"{name}.log").read_text()[-3000:]
            time.sleep(0.1)
        assert read_status(folder).state == "running"
        if how == signal.SIGINT:
            os.killpg(first.pid, how)  # as a terminal sends it
        else:
            first.send_signal(how)
        code = first.wait(timeout=90)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert read_status(folder).state == "interrupted"
    said = (storage / f"{name}.log").read_text()
    if how != signal.SIGKILL:
        assert code == 130
        assert f"{name}: stopping: saving a checkpoint (Ctrl-C again to stop without)\n" in said
        (saved,) = Checkpoints(str(folder / "checkpoints")).finished()
        assert saved.step == lines(folder)[-1]["step"] < 24
        assert f"{name}: stopped at step {saved.step}; its checkpoint is saved\n" in said
        assert "Traceback" not in said
    assert not (folder / "summary.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=beside_tests)
    assert again.returncode == 0, again.stderr[-3000:]
    assert plain(folder) == plain(run)
    undisturbed = weights(run)
    for parameter, weight in weights(folder).items():
        assert torch.equal(weight, undisturbed[parameter]), parameter


def test_what_is_not_read_of_the_records_is_said_and_stays_on_the_page(ray_cluster: None, storage: Path) -> None:
    pair = {"chosen": "Gladly, Ada!", "rejected": "What now, Ada?", "score": 3}
    file = storage / "scored.jsonl"
    file.write_text("".join(json.dumps({"prompt": "one " * i, **pair}) + "\n" for i in range(1, 10)))
    config = toy(
        storage, "name=scored", f"data.train={file}", "data.eval=null", "data.eval_fraction=0.3", "train.max_steps=1",
        "train.global_batch_size=4", "scaling.num_workers=1", "train.zero_stage=0",
    )  # fmt: skip
    printed = io.StringIO()
    console = Console(file=printed, width=400)
    folder = train(config, console)
    said = f"{file}: columns that are not read: score"
    assert printed.getvalue().count(said) == 1
    folder.note_once(said)
    assert [json.loads(line)["event"] for line in folder.events.read_text().splitlines()].count(said) == 1
    assert "columns that are not read: score" in write_report(folder.path).read_text()


def test_real_dialogues(ray_cluster: None, storage: Path, shared: Path) -> None:
    """2,312 real HH-RLHF pairs, a 7.5M-parameter OPT with the genuine vocabulary, two workers, ZeRO-2."""
    config = load_config(
        REPOSITORY / "configs/hh-small-orpo.yaml",
        [
            "name=hh", f"storage.path={storage}", "train.max_steps=20", "train.eval_every_steps=10",
            "train.global_batch_size=16", "optim.warmup_steps=4", "optim.lr=2e-3", "objective.lambda=2.0",
            "data.max_length=160", "data.max_prompt_length=96", "data.eval_fraction=0.03",
            f"model.name_or_path={REPOSITORY / 'configs/models/opt-8m'}",
            f"model.tokenizer={shared / 'tokenizers/opt'}",
            f"data.train={shared / 'data/hh_rlhf/harmless-base-test.jsonl.gz'}",
        ],
    )  # fmt: skip
    folder = train(config).path
    margins = [line["eval_log_odds_ratio"] for line in evaluations(folder)]
    assert margins[-1] > margins[0] + 0.01
    assert evaluations(folder)[-1]["eval_loss"] < evaluations(folder)[0]["eval_loss"] - 1
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 5


CONNECTED = """
import sys, time
from orpo_ray.cli import app, main
from orpo_ray.cluster.connection import connect

@app.command()
def probe() -> None:
    connect()
    print("connected", flush=True)
    time.sleep(60)

main(["probe"])
"""


def test_sigterm_is_ctrl_c_although_ray_answers_it_with_a_stack_dump() -> None:
    """Slurm, Kubernetes and `timeout` send it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECTED], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert "connected\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGTERM" not in errors and errors.endswith("where it stopped: orpo-ray probe\n")
