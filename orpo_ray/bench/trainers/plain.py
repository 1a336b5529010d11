"""What the padded baselines share: a plain Hugging Face model, AdamW, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from orpo_ray.bench.task import Pair, Task, Turn
from orpo_ray.config import ModelConfig, OrpoConfig
from orpo_ray.data.packing import Ids
from orpo_ray.modeling.loading import build_network, load_config, require_weights
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.training.engine import parameter_groups
from orpo_ray.training.lr import learning_rate

IGNORED = -100


def load_network(model: ModelConfig, seed: int) -> PreTrainedModel:
    """The network as anybody would load it: SDPA attention, weights in float32 whatever it computes in.

    Random weights are those that this package's own loop starts from.
    """
    in_float32 = model.model_copy(update={"dtype": "float32"})
    network, missing = build_network(AutoModelForCausalLM, load_config(in_float32), in_float32, seed)
    require_weights(model.name_or_path, missing)
    network.set_attn_implementation("sdpa")
    return network


def computing_in(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 as Hugging Face trainers do it: autocast over float32 weights."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def padded(rows: Sequence[Ids], value: int, device: torch.device) -> Tensor:
    """`(rows, longest)` int64, padded on the right with `value`."""
    longest = max(map(len, rows))
    batch = torch.full((len(rows), longest), value)
    for row, ids in zip(batch, rows, strict=True):
        row[: len(ids)] = torch.from_numpy(ids)
    return batch.to(device)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The mean of `-log sigmoid(log odds(chosen) - log odds(rejected))` of mean log-probs `(pairs,)` (Eq. 7)."""
    log_odds_ratio = (chosen - torch.log1p(-chosen.exp())) - (rejected - torch.log1p(-rejected.exp()))
    return -logsigmoid(log_odds_ratio).mean()


class PlainTrainer:
    """An optimizer step a turn on `self.network`; a baseline says what its loss is."""

    def __init__(self, task: Task) -> None:
        self.task, self.config, self.device = task, task.config, task.device
        assert isinstance(self.config.objective, OrpoConfig)  # BenchmarkConfig has seen to it
        self.lambda_ = self.config.objective.lambda_
        network = load_network(self.config.model, self.config.seed)
        if self.config.model.lora is not None:
            add_adapters(network, self.config.model.lora, self.config.seed)
        if self.config.train.memory == "full":
            network.gradient_checkpointing_enable({"use_reentrant": False})
        self.network = network.to(self.device).train()
        optim = self.config.optim
        groups = parameter_groups(self.network, optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)

    def loss(self, pairs: list[Pair]) -> Tensor:
        raise NotImplementedError

    def run(self, turn: Turn) -> None:
        total = self.task.schedule.total_steps
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for step in range(self.task.steps):
            turn()
            with computing_in(self.config.model.dtype, self.device):
                loss = self.loss(self.task.pairs(step))
            loss.backward()  # type: ignore[no-untyped-call]
            if self.config.optim.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, self.config.optim.max_grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, total, self.config.optim)
            self.optimizer.step()
            self.optimizer.zero_grad()
            del loss
        turn()
