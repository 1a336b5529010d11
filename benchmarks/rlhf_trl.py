"""TRL's side of rlhf.py: its PPO, RLOO and GRPO trainers by their own `train()`, with Hugging Face's `generate`.

TRL had PPO until 1.12; RLOO and GRPO are those of the version that is found. Settings are TRL's defaults but for what
the work says, and for float32 and no recomputation in backward, which are faster on a CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from rlhf_work import Round, Work
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)

MICROBATCH = 8
"""Responses."""


def theirs(work: Work) -> list[Round]:
    """Run the work; the rounds without the first."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder, "learning_rate": work.lr, "lr_scheduler_type": "constant", "use_cpu": True,
            "bf16": False, "gradient_checkpointing": work.recompute, "logging_strategy": "no", "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "temperature": 1.0,
        }  # fmt: skip
        trainer = (_ppo if work.kind == "ppo" else _group)(work, settings)
        clock = _Clock(1 if work.kind == "ppo" else work.updates_of_a_round)
        trainer.add_callback(clock)
        _policy_of(trainer).generate = clock.timed(_policy_of(trainer).generate)
        trainer.train()
    return clock.rounds[1:]


def _ppo(work: Work, settings: dict[str, Any]) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = _tokenizer(work)
    tokenizer.padding_side = "left"
    size = work.prompts_of_a_round
    return PPOTrainer(
        # A minibatch is an update where no gradients are accumulated: with gradient_accumulation_steps above 1 the
        # optimizer would wait for so many minibatches.
        args=PPOConfig(
            **settings, per_device_train_batch_size=size, gradient_accumulation_steps=1,
            num_mini_batches=size // work.update_prompts, num_ppo_epochs=work.epochs, total_episodes=size * work.rounds,
            response_length=work.tokens, stop_token="eos", kl_coef=work.kl_coefficient, num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=_policy(work),
        ref_model=_policy(work),
        reward_model=_reward(work),
        value_model=_reward(work),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in tokenizer(work.texts)["input_ids"]]),
    )  # fmt: skip


def _group(work: Work, settings: dict[str, Any]) -> Any:
    """RLOO or GRPO: groups of samples, microbatches of as many responses as an update of PPO has."""
    import trl

    name = work.kind.upper()
    microbatches, updates = work.rollouts // MICROBATCH, work.updates_of_a_round // work.epochs
    args = getattr(trl, f"{name}Config")(
        **settings, per_device_train_batch_size=MICROBATCH, gradient_accumulation_steps=microbatches // updates,
        steps_per_generation=microbatches, num_generations=work.samples, num_iterations=work.epochs,
        max_steps=work.rounds * work.updates_of_a_round, max_completion_length=work.tokens, beta=work.kl_coefficient,
    )  # fmt: skip
    return getattr(trl, f"{name}Trainer")(
        model=_policy(work), args=args, reward_funcs=_reward(work), reward_processing_classes=_tokenizer(work),
        processing_class=_tokenizer(work), train_dataset=Dataset.from_list([{"prompt": text} for text in work.texts]),
    )  # fmt: skip


def _tokenizer(work: Work) -> Any:
    return AutoTokenizer.from_pretrained(f"{work.folder}/policy")


def _policy(work: Work) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(f"{work.folder}/policy", dtype=torch.float32)


def _reward(work: Work) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(f"{work.folder}/reward", dtype=torch.float32)


def _policy_of(trainer: Any) -> Any:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return getattr(model, "policy", model)


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Rounds by the trainer's own steps, `steps` each."""

    def __init__(self, steps: int) -> None:
        self.rounds: list[Round] = []
        self._steps, self._done, self._generation, self._began = steps, 0, 0.0, 0.0

    def timed(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **settings: Any) -> Any:
            began = time.perf_counter()
            try:
                return generate(*arguments, **settings)
            finally:
                self._generation += time.perf_counter() - began

        return wrapper

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._done += 1
        if self._done % self._steps == 0:
            now = time.perf_counter()
            self.rounds.append(Round(now - self._began, self._generation))
            self._began, self._generation = now, 0.0
