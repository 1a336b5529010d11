"""What the loop asks of the machinery that holds weights and optimizer, and its plain implementation.

`TorchEngine` is AdamW in plain PyTorch, every rank with all of it; `deepspeed_engine.DeepSpeedEngine` is ZeRO. The
loop cannot tell them apart, and either continues from the other's checkpoints.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.data.packing import PackedBatch
from orpo_ray.training.gradient_sums import GradientSums

if TYPE_CHECKING:  # they need more than a bare GPU box has, where the engine is measured (doctor/gpu)
    from orpo_ray.config import OptimConfig
    from orpo_ray.modeling.reward import StateDict
    from orpo_ray.modeling.scorer import Scorer


class Piece(NamedTuple):
    """A run of one parameter's elements, in its flattened order, with what AdamW knows of them.

    Views `(elements,)` in float32 of the engine's own state: filling them changes it.
    """

    name: str
    start: int
    weight: Tensor
    """Of the parameter, or of the float32 master copy of a bfloat16 one."""
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Engine(Protocol):
    policy: Scorer
    device: torch.device
    rank: int
    ranks: int
    replicated: bool
    """Whether every rank holds all pieces, or each its own."""

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        """Log-prob sums, or rewards, `(sequences,)` of `batch`; `by_token`: what a policy gives every prediction,
        `(predictions,)` log-probs, or `(predictions, 2)` where a critic's values stand beside them."""

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this micro-batch's share of the loss; `last` of the step on this rank."""

    def step(self, lr: float) -> Tensor:
        """Clip, update, clear gradients; returns the global gradient norm before clipping, `()` on the device: to read
        it is to wait for all that came before.

        Where that norm is not finite nothing is updated, on any rank.
        """

    def all_sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""

    def gather(self, value: Any) -> list[Any]:
        """What every rank has called this with, by rank."""

    def broadcast(self, value: Any) -> Any:
        """What rank 0 has called this with; every rank must call it."""

    def weights(self) -> StateDict | None:
        """The model's whole state dict, adapters apart, on rank 0 (None on the others); every rank must call it."""

    def pieces(self) -> list[Piece]:
        """What this rank holds of the trained parameters."""

    @property
    def updates(self) -> int:
        """AdamW's count of updates."""

    def filled(self, updates: int) -> None:
        """To be called when all `pieces` were filled: the network takes its weights from them."""


def parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, biases and norms do not. Where nothing does, one group: ZeRO reduces the norm and
    gathers the weights of each on its own."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not weight_decay:
        return [{"params": trained, "weight_decay": 0.0}]
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


def scored(model: Callable[..., Any], batch: PackedBatch, by_token: bool) -> Tensor:
    """What a policy, or what wraps it, gives `batch`; a reward model knows of no tokens."""
    found: Tensor = model(batch, by_token=True) if by_token else model(batch)
    return found


def adam_state(optimizer: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of one parameter, made as its first update would make it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return state


def adam_updates(states: Iterable[dict[str, Tensor]]) -> int:
    """How many updates AdamW has made. Its parameters all count alike."""
    return int(next(iter(states))["step"])


class TorchEngine:
    """AdamW on float32 weights: the policy's own, or master copies of bfloat16 ones.

    Alone, or on every rank of an initialised `torch.distributed` process group with the gradients of all (ZeRO stage
    0). Gradients accumulate in float32, those of a bfloat16 weight as soon as backward has them.
    """

    replicated = True

    def __init__(self, policy: Scorer, optim: OptimConfig, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        together = torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if together else 0
        self.ranks = torch.distributed.get_world_size() if together else 1
        self.policy = policy.to(self.device)
        self._max_grad_norm = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
        groups = parameter_groups(policy, optim.weight_decay)
        trained = [p for group in groups for p in group["params"]]
        for group in groups:
            group["params"] = [p if p.dtype == torch.float32 else p.detach().float() for p in group["params"]]
        self._weights = [p for group in groups for p in group["params"]]
        copies = [(low, full) for low, full in zip(trained, self._weights, strict=True) if low is not full]
        self._low, self._full = [low for low, _ in copies], [full for _, full in copies]
        names = {id(parameter): name for name, parameter in policy.named_parameters()}
        self._names = [names[id(parameter)] for parameter in trained]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        held = {id(parameter): weight for parameter, weight in zip(trained, self._weights, strict=True)}
        in_order = [held[key] for key in names if key in held]
        self._sums = GradientSums(in_order) if self.ranks > 1 else None
        self._last = False
        engine = weakref.ref(self)  # its policy may outlive it
        for parameter in trained if self._sums is not None else self._low:
            parameter.register_post_accumulate_grad_hook(partial(_arrived, engine, held[id(parameter)]))

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        return scored(self.policy, batch.to(self.device), by_token)

    def backward(self, share: Tensor, *, last: bool) -> None:
        self._last = last
        share.backward()  # type: ignore[no-untyped-call]

    def arrived(self, parameter: Tensor, weight: Tensor) -> None:
        """Backward has the gradient of `parameter`, whose float32 weight is `weight`."""
        if parameter is not weight:
            assert parameter.grad is not None
            weight.grad = parameter.grad.float() if weight.grad is None else weight.grad.add_(parameter.grad)
            parameter.grad = None
        if self._sums is not None and self._last:
            self._sums.ready(weight)

    def step(self, lr: float) -> Tensor:
        if self._sums is not None:
            self._sums.finish()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel looks at it, and leaves all as it is where it is 1: the host need not know.
        self.optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._copy_down()
        return norm

    def _copy_down(self) -> None:
        if self._low:
            with torch.no_grad():
                torch._foreach_copy_(self._low, self._full)

    def all_sum(self, values: Tensor) -> Tensor:
        if self.ranks > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        return gather(value) if self.ranks > 1 else [value]

    def broadcast(self, value: Any) -> Any:
        return broadcast(value) if self.ranks > 1 else value

    def weights(self) -> StateDict | None:
        return None if self.rank else dict(self.policy.model.state_dict())

    def pieces(self) -> list[Piece]:
        return [
            Piece(name, 0, *(part.detach().view(-1) for part in (weight, state["exp_avg"], state["exp_avg_sq"])))
            for name, weight, state in zip(self._names, self._weights, self._states(), strict=True)
        ]

    def _states(self) -> list[dict[str, Tensor]]:
        return [adam_state(self.optimizer, weight) for weight in self._weights]

    @property
    def updates(self) -> int:
        return adam_updates(self._states())

    def filled(self, updates: int) -> None:
        for state in self._states():
            state["step"].fill_(updates)
        self._copy_down()


def _arrived(engine: weakref.ref[TorchEngine], weight: Tensor, parameter: Tensor) -> None:
    if (alive := engine()) is not None:
        alive.arrived(parameter, weight)


def gather(value: Any) -> list[Any]:
    """`value` of every rank of the process group, by rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """`value` of rank 0, on every rank of the process group; what others hold is sent nowhere."""
    values = [value if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
