"""What the loop asks of the machinery that holds weights and optimizer, and its two implementations.

`DeepSpeedEngine` runs under any number of ranks; `TorchEngine` is the plain single-process one, which unit
tests and measurements on a bare machine use. The loop cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orpo_ray.config import OptimConfig, TrainConfig
from orpo_ray.data.packing import PackedBatch
from orpo_ray.errors import UserError
from orpo_ray.modeling.reward import StateDict
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.training.allocator import keep_freed_memory


class Engine(Protocol):
    policy: Scorer
    device: torch.device
    rank: int
    ranks: int

    def forward(self, batch: PackedBatch) -> Tensor:
        """Log-prob sums, or rewards, `(sequences,)` of `batch`."""

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this micro-batch's share of the loss; `last` of the step on this rank."""

    def step(self, lr: float) -> float:
        """Clip, update, clear gradients; returns the global gradient norm before clipping."""

    def all_sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""

    def weights(self) -> StateDict | None:
        """The model's whole state dict, adapters apart, on rank 0 (None on the others); every rank must call it."""

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write this rank's part of a checkpoint, and `state`, into `folder`."""

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore a checkpoint of `save` and return its `state`."""


def parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, biases and norms do not."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    kept = [p for p in trained if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back."""
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train()


class TorchEngine:
    """One process, AdamW on float32 weights: the policy's own, or master copies of bfloat16 ones."""

    rank, ranks = 0, 1

    def __init__(self, policy: Scorer, optim: OptimConfig, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.policy = policy.to(self.device)
        self._max_grad_norm = optim.max_grad_norm
        groups = parameter_groups(policy, optim.weight_decay)
        trained = [p for group in groups for p in group["params"]]
        for group in groups:
            group["params"] = [p if p.dtype == torch.float32 else p.detach().float() for p in group["params"]]
        self._weights = [p for group in groups for p in group["params"]]
        self._copies = [(low, full) for low, full in zip(trained, self._weights, strict=True) if low is not full]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)

    def forward(self, batch: PackedBatch) -> Tensor:
        sums: Tensor = self.policy(batch.to(self.device))
        return sums

    def backward(self, share: Tensor, *, last: bool) -> None:
        share.backward()  # type: ignore[no-untyped-call]
        for low, full in self._copies:
            if low.grad is not None:
                full.grad = low.grad.float() if full.grad is None else full.grad.add_(low.grad)
                low.grad = None

    def step(self, lr: float) -> float:
        limit = float("inf") if self._max_grad_norm is None else self._max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self._weights, limit)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._copy_down()
        return float(norm)

    def _copy_down(self) -> None:
        with torch.no_grad():
            for low, full in self._copies:
                low.copy_(full)

    def all_sum(self, values: Tensor) -> Tensor:
        return values

    def weights(self) -> StateDict | None:
        return dict(self.policy.model.state_dict())

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        saved = {"weights": self._weights, "adam": self.optimizer.state_dict(), "state": state}
        torch.save(saved, folder / "state.pt")

    def load(self, folder: Path) -> dict[str, Any]:
        saved = torch.load(folder / "state.pt", map_location=self.device, weights_only=False)
        self.optimizer.load_state_dict(saved["adam"])
        with torch.no_grad():
            for weight, value in zip(self._weights, saved["weights"], strict=True):
                weight.copy_(value)
        self._copy_down()
        state: dict[str, Any] = saved["state"]
        return state


class DeepSpeedEngine:
    """DeepSpeed ZeRO over the ranks of an initialised `torch.distributed` process group."""

    _TAG = "deepspeed"

    def __init__(self, policy: Scorer, config: TrainConfig, device: torch.device) -> None:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
        optimizer = torch.optim.AdamW(
            parameter_groups(policy, config.optim.weight_decay),
            lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps, fused=True,
        )  # fmt: skip
        self._engine = deepspeed.initialize(model=policy, optimizer=optimizer, config=deepspeed_config(config))[0]
        # DeepSpeed keeps no gradient norm for the one setting in which it does not wrap the optimizer.
        self._plain = config.train.zero_stage == 0 and config.model.dtype == "float32"
        self.policy = policy
        self.device = device
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def forward(self, batch: PackedBatch) -> Tensor:
        sums: Tensor = self._engine(batch.to(self.device))
        return sums

    def backward(self, share: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; shares of the global totals have to be added.
        self._engine.backward(share * self.ranks, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None] if self._plain else []
        norm = torch.nn.utils.get_total_norm(gradients)  # before the step clips and clears them
        self._engine.step()
        return float(norm if self._plain else self._engine.get_global_grad_norm())

    def all_sum(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values

    def weights(self) -> StateDict | None:
        if self._engine.zero_optimization_stage() == 3:
            gathered: StateDict | None = self._engine._zero3_consolidated_16bit_state_dict()
            return None if self.rank else {k.removeprefix("model."): v for k, v in (gathered or {}).items()}
        return None if self.rank else dict(self.policy.model.state_dict())

    def _frozen(self) -> set[str]:
        """Names of the weights that no checkpoint holds: the model's files do. A tied weight has several."""
        parameters = self.policy.named_parameters(remove_duplicate=False)
        return {name for name, parameter in parameters if not parameter.requires_grad}

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        frozen = self._frozen()

        def leave_out(module: nn.Module, weights: dict[str, Any], prefix: str, metadata: Any) -> None:
            for name in frozen:
                weights.pop(name, None)

        # DeepSpeed's exclusion alone misses the second name of a tied weight.
        with self.policy.register_state_dict_post_hook(leave_out):  # type: ignore[no-untyped-call]
            self._engine.save_checkpoint(
                str(folder), tag=self._TAG, client_state={"state": state}, save_latest=False,
                exclude_frozen_parameters=bool(frozen),
            )  # fmt: skip

    def load(self, folder: Path) -> dict[str, Any]:
        complete = not self._frozen()
        path, client = self._engine.load_checkpoint(str(folder), tag=self._TAG, load_module_strict=complete)
        if path is None:
            raise UserError(f"{folder}: not a checkpoint of this run")
        state: dict[str, Any] = client["state"]
        return state


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run."""
    stage, half = config.train.zero_stage, config.model.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": stage}
    if torch.cuda.is_available():  # reduce gradients on a stream of their own, beside backward
        zero |= {"overlap_comm": True}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    if config.train.offload_optimizer:
        if stage == 0:
            raise UserError("train.offload_optimizer needs train.zero_stage 1, 2 or 3")
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    settings = {
        # Micro-batches are cut by the schedule; DeepSpeed is told nothing of them but their boundary.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half},
        # Without ZeRO, DeepSpeed accumulates gradients in the model's dtype only.
        "data_types": {"grad_accum_dtype": "bf16" if half and stage == 0 else "fp32"},
        "steps_per_print": 10**12,
    }
    return _merged(settings, config.train.deepspeed)


def _merged(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the user's `own` laid over, mapping by mapping."""
    merged = dict(settings)
    for key, value in own.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
