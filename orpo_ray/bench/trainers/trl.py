"""TRL's ORPOTrainer, by its own `trainer.train()`."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from orpo_ray.bench.task import Pair, Task, Turn, Unavailable
from orpo_ray.bench.trainers.plain import IGNORED, load_network
from orpo_ray.config import OrpoConfig, TrainConfig
from orpo_ray.modeling.loading import load_tokenizer

_SCHEDULES = {"constant": "constant_with_warmup"}  # the others have Hugging Face's names


class Trl:
    """The same pairs as token ids in the same order; its defaults but for what the run says, and no logging."""

    def __init__(self, task: Task) -> None:
        try:
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        except ImportError as error:
            raise Unavailable(f"{error} (pip install orpo_ray[bench])") from None
        self._folder = tempfile.TemporaryDirectory()
        tokenizer = load_tokenizer(task.config.model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.trainer: Any = ORPOTrainer(
            model=load_network(task.config.model, task.config.seed),
            args=ORPOConfig(output_dir=self._folder.name, max_steps=task.steps + 1, **settings(task.config, task)),
            # Tokenised by TRL before training, as ever; the ids that it then trains on are put in their place.
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=tokenizer,
            peft_config=adapters(task.config),
        )
        # A step beyond the last: the loader collates one ahead, in the last measured step too.
        self.trainer.train_dataset = Dataset.from_list(
            [features(pair) for step in range(task.steps + 1) for pair in task.pairs(step)]
        )

    def run(self, turn: Turn) -> None:
        self.trainer.add_callback(_TakesTurns(turn))
        self.trainer.train()


class _TakesTurns(TrainerCallback):  # type: ignore[misc]
    """Holds the trainer between its steps, so that collation counts in the step that it is for or the one before."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turn()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.turn()


def settings(config: TrainConfig, task: Task) -> dict[str, Any]:
    """The run's settings in TRL's names."""
    assert isinstance(config.objective, OrpoConfig)  # BenchmarkConfig has seen to it
    optim = config.optim
    return {
        "beta": config.objective.lambda_, "max_length": config.data.max_length * (task.stretch or 1),
        "disable_dropout": not config.model.keep_dropout, "seed": config.seed,
        "per_device_train_batch_size": config.train.global_batch_size, "train_sampling_strategy": "sequential",
        "learning_rate": optim.lr, "lr_scheduler_type": _SCHEDULES.get(optim.schedule, optim.schedule),
        "warmup_steps": optim.warmup_steps, "weight_decay": optim.weight_decay, "adam_epsilon": optim.eps,
        "adam_beta1": optim.betas[0], "adam_beta2": optim.betas[1], "max_grad_norm": optim.max_grad_norm or 0.0,
        "bf16": config.model.dtype == "bfloat16", "use_cpu": task.device.type == "cpu",
        "gradient_checkpointing": config.train.memory == "full", "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def features(pair: Pair) -> dict[str, list[int]]:
    """A pair as `ORPOTrainer.tokenize_row` leaves it: labels on the response alone."""
    prompt, *responses = pair
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": np.ones_like(prompt)}
    for side, response in zip(("chosen", "rejected"), responses, strict=True):
        ids = np.r_[prompt, response]
        labels = np.r_[np.full_like(prompt, IGNORED), response]
        row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": np.ones_like(ids), f"{side}_labels": labels}
    return {name: values.tolist() for name, values in row.items()}


def adapters(config: TrainConfig) -> Any:
    """peft's configuration of the run's adapters, or None."""
    lora = config.model.lora
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )  # fmt: skip
