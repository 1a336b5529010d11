"""One rank of `test_engines.py`: trains the same ten steps under every engine setting that it is given."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import OPTConfig

from orpo_ray.config import LoraConfig, TrainConfig, parse_config
from orpo_ray.data.dataset import PairDataset
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training.engine import DeepSpeedEngine, Engine, TorchEngine
from orpo_ray.training.loop import Line, State, run

STEPS = 10


def config_of(**settings: Any) -> TrainConfig:
    """AdamW with a large eps: with 1e-8 rounding decides the sign of tiny updates."""
    train = {"global_batch_size": 12, "max_steps": STEPS, "epochs": 9, "checkpoint_every_steps": 4, "zero_stage": 0}
    mapping = {
        "name": "engines",
        "model": {
            "name_or_path": "unused",
            "dtype": settings.pop("dtype", "float32"),
            "lora": settings.pop("lora", None),
        },
        "data": {"train": "unused"},
        "objective": {"lambda": 0.5},
        "optim": {"lr": 1e-3, "eps": 1e-3, "warmup_steps": 2, "weight_decay": 0.01},
        # At the default threshold ZeRO-3 would leave such small parameters whole.
        "train": {**train, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}, **settings},
    }
    return parse_config(mapping, [], "test")


def dataset(pairs: int = 40) -> PairDataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 25, (pairs, 3))
    ends = lengths.reshape(-1).cumsum()
    starts = np.r_[0, ends[:-1]].reshape(pairs, 3)
    tokens = rng.integers(3, 97, ends[-1]).astype(np.int32)
    return PairDataset(tokens, np.c_[starts, starts[:, 2] + lengths[:, 2]].astype(np.int64), np.arange(pairs))


def policy(dtype: str, checkpointing: bool, lora: LoraConfig | None) -> PackedPolicy:
    """A tied OPT with a smooth activation: at a ReLU's kink rounding turns into a different gradient.

    Adapters begin where both of their halves have a gradient.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0, activation_function="gelu",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).to(getattr(torch, dtype))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        add_adapters(model, lora, seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.1)
    return PackedPolicy(model).train()


class Watch:
    """The loop's sink: keeps lines, the first step's gradients, and (optionally) checkpoints."""

    def __init__(self, folder: Path | None = None) -> None:
        self.lines: list[Line] = []
        self.folder = folder

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def best_model(self, engine: Engine, evaluation: Line, table: torch.Tensor) -> None:
        pass

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        if self.folder is not None:
            engine.save(self.folder / f"step-{state.step}", {"step": state.step})


def watch_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """Full gradients of the first step, taken between the last backward and the update."""
    taken: dict[str, torch.Tensor] = {}
    step = engine.step

    def taking_step(lr: float) -> float:
        if not taken:
            for name, parameter in engine.policy.model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if isinstance(engine, DeepSpeedEngine):
                    from deepspeed.utils import safe_get_full_grad

                    gradient = safe_get_full_grad(parameter)
                else:
                    gradient = parameter.grad
                taken[name] = gradient.detach().float().clone()
        return step(lr)

    engine.step = taking_step  # type: ignore[method-assign]
    return taken


def trained(settings: dict[str, Any], engine_kind: str, checkpoints: Path | None, resume: int | None) -> dict[str, Any]:
    settings = dict(settings)
    checkpointing = settings.pop("checkpointing", False)
    config = config_of(**settings)
    own = policy(config.model.dtype, checkpointing, config.model.lora)
    engine: Engine
    if engine_kind == "torch":
        engine = TorchEngine(own, config.optim)
    else:
        engine = DeepSpeedEngine(own, config, torch.device("cpu"))
    gradients = watch_gradients(engine)
    state = State()
    if resume is not None and checkpoints is not None:
        state = State(**engine.load(checkpoints / f"step-{resume}"))
    watch = Watch(None if resume is not None else checkpoints)
    data = dataset()
    run(engine, config, data, data.subset(np.arange(7)), watch, state)
    weights = engine.weights()
    return {"lines": watch.lines, "gradients": gradients, "weights": weights, "checkpointed": held(watch.folder)}


def held(folder: Path | None) -> set[str]:
    """Names of the weights in DeepSpeed's own files of the last checkpoint."""
    files = folder.glob(f"step-{STEPS}/*/*model_states.pt") if folder is not None else ()
    return {name for file in files for name in torch.load(file, weights_only=False)["module"]}


def main(out: str) -> None:
    """Run every job of the file `out/jobs.pt`; rank 0 saves the results."""
    folder = Path(out)
    jobs: dict[str, dict[str, Any]] = torch.load(folder / "jobs.pt", weights_only=False)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {}
    for name, job in jobs.items():
        checkpoints = folder / f"checkpoints-{ranks}-{job['checkpoints']}" if job.get("checkpoints") else None
        results[name] = trained(job["settings"], job.get("engine", "deepspeed"), checkpoints, job.get("resume"))
    if rank == 0:
        torch.save(results, folder / f"results-{ranks}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
