"""The files of `configs/`: each is valid, and those of the paper hold the paper's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orpo_ray.config import (
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    OrpoConfig,
    RolloutsConfig,
    ScoreConfig,
    SftConfig,
    TrainConfig,
    load_as,
    load_config,
    load_pipeline,
    load_sweep,
)
from orpo_ray.config.objectives import PpoConfig
from orpo_ray.data import toyworld
from orpo_ray.modeling import loading

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HH = "Anthropic/hh-rlhf"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
ARGILLA = "argilla/ultrafeedback-binarized-preferences-cleaned"

# model, data, lambda, lr, schedule, warm-up, epochs, global batch, max length, drop prompts over, ZeRO, GPUs
# (shared/PAPER.md has the sources)
PAPER = {
    "opt-125m-hh-orpo":
        ("facebook/opt-125m", HH, 1.0, 8e-6, "cosine", 100, 10, 16, 1024, 1024, 2, 4),
    "opt-350m-hh-orpo":
        ("facebook/opt-350m", HH, 1.0, 8e-6, "cosine", 100, 10, 16, 1024, 1024, 2, 4),
    "opt-1.3b-hh-orpo":
        ("facebook/opt-1.3b", HH, 1.0, 8e-6, "cosine", 100, 10, 16, 1024, 1024, 2, 4),
    "opt-125m-ultrafeedback-orpo":
        ("facebook/opt-125m", ULTRAFEEDBACK, 1.0, 8e-6, "cosine", 100, 10, 16, 2048, 1024, 2, 4),
    "opt-350m-ultrafeedback-orpo":
        ("facebook/opt-350m", ULTRAFEEDBACK, 1.0, 8e-6, "cosine", 100, 10, 16, 2048, 1024, 2, 4),
    "opt-1.3b-ultrafeedback-orpo":
        ("facebook/opt-1.3b", ULTRAFEEDBACK, 1.0, 8e-6, "cosine", 100, 10, 16, 2048, 1024, 2, 4),
    "phi-2-ultrafeedback-orpo":
        ("microsoft/phi-2", ULTRAFEEDBACK, 0.25, 8e-6, "cosine", 100, 10, 16, 2048, 1024, 2, 2),
    "llama-2-7b-ultrafeedback-orpo":
        ("meta-llama/Llama-2-7b-hf", ULTRAFEEDBACK, 0.2, 8e-6, "cosine", 200, 10, 32, 2048, 1024, 3, 4),
    "mistral-7b-orpo-alpha":
        ("mistralai/Mistral-7B-v0.1", ULTRAFEEDBACK, 0.1, 5e-6, "inverse_sqrt", 200, 5, 32, 2048, 1024, 3, 4),
    "mistral-7b-orpo-beta":
        ("mistralai/Mistral-7B-v0.1", ARGILLA, 0.1, 5e-6, "inverse_sqrt", 200, 5, 32, 2048, 1791, 3, 4),
}  # fmt: skip
LORA = "opt-1.3b-hh-orpo-lora"
OTHERS = {
    LORA,
    "toy-winrate",
    "score-toy",
    "toy-pipeline",
    "toy-rlhf-pipeline",
    "toy-sweep",
    "toy-ppo-sweep",
    "opt-125m-hh-sweep",
}
SMALL = {"toy-base", "toy-sft", "toy-orpo", "toy-dpo", "toy-reward", "toy-ppo", "hh-small-orpo", "small-orpo"}
# size, data, stage: what the paper says of it: objective, lr, epochs
STAGES = {
    f"opt-{size}-{data}-{stage}": (stage, lr, epochs)
    for size in ("125m", "350m", "1.3b")
    for data in ("hh", "ultrafeedback")
    for stage, lr, epochs in (("sft", 1e-5, 1), ("dpo", 5e-6, 3), ("ppo", 1e-5, 1), ("reward", 1e-5, 1))
    if (size, stage) != ("125m", "reward")  # the paper's reward models are 350M and 1.3B
}


WINRATES = {
    f"opt-{size}-{data}-winrate": (size, data) for size in ("125m", "350m", "1.3b") for data in ("hh", "ultrafeedback")
}


WHOLE = {"hh", "ultrafeedback", "small", "toy"}
"""The whole paper in one file each (test_paper_configs.py)."""


def config(name: str) -> TrainConfig:
    return load_config(CONFIGS / f"{name}.yaml")


def same_but_for_lengths(run: TrainConfig, other: TrainConfig) -> bool:
    """Whether the data are the same, if a prompt and its response may be longer than a pair."""
    lengths = {"max_length": run.data.max_length, "max_prompt_length": run.data.max_prompt_length}
    return run.data == other.data.model_copy(update=lengths)


def test_these_are_all_files() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == PAPER.keys() | SMALL | OTHERS


@pytest.mark.parametrize("name", sorted(PAPER.keys() | SMALL | {LORA}))
def test_a_file_is_valid_and_names_its_run_after_itself(name: str) -> None:
    assert config(name).name == name


@pytest.mark.parametrize("name", ["toy-2x64", "toy-3x96", "toy-4x128"])
def test_models_of_the_embedded_world_differ_in_size_alone(name: str) -> None:
    layers, width = map(int, name.removeprefix("toy-").split("x"))
    found = json.loads((CONFIGS / "models" / name / "config.json").read_text())
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    whole = toyworld.model_config().to_dict() | sizes
    assert found.pop("architectures") == ["OPTForCausalLM"]
    assert {key: whole[key] for key in found} == found and found.keys() > sizes.keys()
    model = ModelConfig(name_or_path=str(CONFIGS / "models" / name), init="random", tokenizer="toy")
    assert loading.load_config(model).vocab_size == len(loading.load_tokenizer(model))


def test_the_papers_baselines_are_there() -> None:
    assert {path.stem for path in (CONFIGS / "paper").glob("*.yaml")} - WHOLE == STAGES.keys() | WINRATES.keys()


@pytest.mark.parametrize("name", WINRATES)
def test_the_papers_win_rates_compare_runs_that_the_files_make(name: str) -> None:
    size, data = WINRATES[name]
    evaluation = load_as(EvaluationConfig, CONFIGS / "paper" / f"{name}.yaml")
    assert evaluation.name == name
    orpo = config(f"opt-{size}-{data}-orpo")
    assert (evaluation.prompts.source, evaluation.prompts.split) == (orpo.data.eval, orpo.data.eval_split)
    assert (evaluation.sampling.temperature, evaluation.sampling.rounds) == (1.0, 3)
    runs = {f"./runs/{run}" for run in PAPER.keys() | STAGES.keys()}
    assert {*(model.path for model in evaluation.models.values()), *evaluation.reward_models.values()} <= runs
    assert list(evaluation.reward_models) == ["opt-1.3b"]


@pytest.mark.parametrize("name", STAGES)
def test_the_settings_of_the_papers_baselines(name: str) -> None:
    run = load_config(CONFIGS / "paper" / f"{name}.yaml")
    assert (run.name, run.objective.name, run.optim.lr, run.train.epochs) == (name, *STAGES[name])
    size, data, stage = name.removeprefix("opt-").split("-")
    orpo = config(f"opt-{size}-{data}-orpo")
    if stage == "ppo":  # no prompt is cut, and none that the paper keeps is dropped
        assert run.rollouts is not None and run.data.drop_prompts_over is not None
        assert run.data.max_length >= run.data.drop_prompts_over + run.rollouts.max_tokens
        assert same_but_for_lengths(run, orpo)
        assert run.data.drop_prompts_over == orpo.data.drop_prompts_over
    else:
        assert run.data == orpo.data
    start = f"./runs/opt-{size}-{data}-sft" if stage in ("dpo", "ppo") else orpo.model.name_or_path
    assert run.model.name_or_path == start


@pytest.mark.parametrize("name", [name for name in STAGES if name.endswith("ppo")])
def test_the_papers_ppo(name: str) -> None:
    run = load_config(CONFIGS / "paper" / f"{name}.yaml")
    _, size, data, _ = name.split("-")
    assert run.objective == PpoConfig(kl_coefficient=0.1, kl_target=6, kl_horizon=2000, gamma=0.99)
    rewards = {"opt-350m": f"./runs/opt-350m-{data}-reward"}
    assert rewards["opt-350m"].removeprefix("./runs/") in STAGES
    tokens = {"hh": 256, "ultrafeedback": 512}[data]
    assert run.rollouts == RolloutsConfig.model_validate({"rewards": rewards, "epochs": 4, "max_tokens": tokens})
    assert (run.rollouts.prompts, run.train.global_batch_size, run.optim.schedule) == (64, 8, "constant")
    sft = load_config(CONFIGS / "paper" / f"opt-{size}-{data}-sft.yaml")
    assert (run.model.name_or_path, run.model.dtype) == (f"./runs/{sft.name}", sft.model.dtype)
    assert not run.model.keep_dropout  # the engine has none, so the first ratio would not be 1
    assert run.scaling == sft.scaling


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_of_the_paper(name: str) -> None:
    run = config(name)
    assert isinstance(run.objective, OrpoConfig)
    assert (
        run.model.name_or_path,
        run.data.train,
        run.objective.lambda_,
        run.optim.lr,
        run.optim.schedule,
        run.optim.warmup_steps,
        run.train.epochs,
        run.train.global_batch_size,
        run.data.max_length,
        run.data.drop_prompts_over,
        run.train.zero_stage,
        run.scaling.num_workers,
    ) == PAPER[name]


@pytest.mark.parametrize("name", PAPER)
def test_what_the_papers_runs_share(name: str) -> None:
    run = config(name)
    assert isinstance(run.objective, OrpoConfig)
    assert run.objective.nll_tokens == "prompt_and_chosen"
    assert run.model.dtype == "bfloat16"
    assert run.model.keep_dropout == ("opt" in name or "phi" in name)
    assert run.train.memory == "auto"  # the authors have all of it computed again; the result is the same
    assert (run.optim.weight_decay, run.optim.max_grad_norm) == (0.0, 1.0)
    assert run.data.on_bad_record == "quarantine"
    assert run.seed == 42


def test_the_held_out_data() -> None:
    hh, ultrafeedback, argilla = (
        config(name).data for name in ("opt-125m-hh-orpo", "phi-2-ultrafeedback-orpo", "mistral-7b-orpo-beta")
    )
    assert (hh.train_split, hh.eval, hh.eval_split, hh.chat_template) == ("train", HH, "test", None)
    assert (ultrafeedback.train_split, ultrafeedback.eval) == ("train_prefs", ULTRAFEEDBACK)
    assert (ultrafeedback.eval_split, ultrafeedback.chat_template) == ("test_prefs", "orpo")
    assert (argilla.train_split, argilla.eval, argilla.chat_template) == ("train", None, "orpo")
    assert (argilla.max_prompt_length, argilla.max_length) == (1792, 2048)


@pytest.mark.parametrize("name", PAPER)
def test_every_setting_of_the_paper_has_its_source_beside_it(name: str) -> None:
    sourced = (
        "lr", "schedule", "warmup_steps", "epochs", "global_batch_size", "zero_stage", "lambda", "nll_tokens",
        "max_length", "max_prompt_length", "drop_prompts_over", "num_workers", "train", "seed",
    )  # fmt: skip
    for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
        key, _, value = line.strip().partition(":")
        if key in sourced and value:
            assert "# " in value, line


def test_lora_differs_from_training_all_weights_in_what_it_says() -> None:
    lora, full = config(LORA), config("opt-1.3b-hh-orpo")
    assert lora.model.lora == LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules="all-linear")
    assert lora.model.model_copy(update={"lora": None}) == full.model
    assert lora.optim == full.optim.model_copy(update={"lr": 8e-5})
    assert (lora.data, lora.objective, lora.train, lora.seed) == (full.data, full.objective, full.train, full.seed)


def test_sft_and_orpo_of_the_toy_world_differ_in_the_objective_alone() -> None:
    sft, orpo = config("toy-sft"), config("toy-orpo")
    assert (sft.objective, orpo.objective) == (SftConfig(), OrpoConfig(lambda_=1.0))
    assert sft.model_copy(update={"name": orpo.name, "objective": orpo.objective}) == orpo
    assert Path(sft.model.name_or_path) == Path("runs") / config("toy-base").name


def test_ppo_of_the_toy_world_learns_from_the_reward_model_and_is_told_the_truth() -> None:
    run = config("toy-ppo")
    assert run.rollouts is not None
    rewards = {label: (Path(one.path), one.weight) for label, one in run.rollouts.rewards.items()}
    assert rewards == {"reward": (Path("runs") / config("toy-reward").name, 1), "truth": (Path("toy"), 0)}
    assert same_but_for_lengths(run, config("toy-dpo"))
    assert run.model == config("toy-dpo").model
    sweep = load_sweep(CONFIGS / "toy-ppo-sweep.yaml")
    trial = sweep.training({}, "trial", sweep.storage)
    assert (trial.objective, trial.rollouts) == (run.objective, run.rollouts)


def test_the_scores_of_the_toy_world_are_of_its_reward_model() -> None:
    scores = load_as(ScoreConfig, CONFIGS / "score-toy.yaml")
    assert scores.name == "score-toy"
    assert Path(scores.reward_models["reward"]) == Path("runs") / config("toy-reward").name
    assert scores.prompts.source == config("toy-reward").data.eval


@pytest.mark.parametrize(
    ("name", "labels", "judge"),
    [("toy-pipeline", ["base", "sft", "orpo"], None),
     ("toy-rlhf-pipeline", ["base", "sft", "reward", "ppo", "dpo", "orpo"], "reward")],
)  # fmt: skip
def test_the_pipelines_compare_the_runs_that_they_make(name: str, labels: list[str], judge: str | None) -> None:
    pipeline = load_pipeline(CONFIGS / f"{name}.yaml")
    evaluation, runs = pipeline.evaluation, {label: config(f"toy-{label}") for label in labels}
    assert (evaluation.name, list(pipeline.runs), pipeline.runs) == (name, labels, runs)
    folders = {label: Path("runs") / run.name for label, run in runs.items()}
    assert {label: Path(model.path) for label, model in evaluation.models.items()} == {
        label: folder for label, folder in folders.items() if label != judge
    }
    judges = {} if judge is None else {judge: folders[judge]}
    assert {label: Path(path) for label, path in evaluation.reward_models.items()} == judges | {"truth": Path("toy")}
    made = [str(Path(run.model.name_or_path)) for run in runs.values()]
    assert all(start in {str(folders[each]) for each in labels[:place]} for place, start in enumerate(made) if place)


def test_pairs_of_ones_own_are_trained_as_the_small_dialogues_but_for_their_shape() -> None:
    own, dialogues = config("small-orpo"), config("hh-small-orpo")
    assert (own.data.train, own.data.format, own.data.limit) == ("pairs.jsonl", "auto", None)
    assert own.data.on_bad_record == "error"  # the first mistake in a person's own file is told, not set aside
    assert (own.optim.warmup_steps, dialogues.optim.warmup_steps) == (0.1, 20)
    for name in ("model", "objective", "train", "scaling"):
        assert getattr(own, name) == getattr(dialogues, name)


def test_the_small_model_of_real_dialogues() -> None:
    run = config("hh-small-orpo")
    folder = CONFIGS.parent / run.model.name_or_path
    shape = json.loads((folder / "config.json").read_text())
    assert run.model.init == "random"
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert shape["max_position_embeddings"] >= run.data.max_length
    width = shape["hidden_size"]
    block = 4 * (width + 1) * width + 2 * width * shape["ffn_dim"] + shape["ffn_dim"] + width + 4 * width
    embeddings = (shape["vocab_size"] + shape["max_position_embeddings"] + 2) * width
    assert embeddings + shape["num_hidden_layers"] * block + 2 * width == 7_490_560
