"""The engine of ZeRO stages 1 to 3: DeepSpeed, over the ranks of an initialised `torch.distributed` process group."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orpo_ray.config import TrainConfig
from orpo_ray.config.overlays import laid_over
from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.loading import DTYPES
from orpo_ray.modeling.reward import StateDict
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.training.build_locks import wait_for_builds
from orpo_ray.training.engine import (
    Engine,
    Piece,
    TorchEngine,
    adam_state,
    adam_updates,
    broadcast,
    gather,
    parameter_groups,
    scored,
)


class _Run(NamedTuple):
    """Where a run of a parameter's elements lies in one of DeepSpeed's flat float32 partitions."""

    name: str
    start: int
    elements: int
    flat: Tensor
    offset: int


class DeepSpeedEngine:
    """ZeRO over the ranks of an initialised process group."""

    replicated = False

    def __init__(self, policy: Scorer, config: TrainConfig, device: torch.device) -> None:
        import deepspeed

        wait_for_builds()
        _import_without_compiler("deepspeed.runtime.zero.muon.muon_optimizer")
        if device.type == "cpu":  # an all-reduce of inference alone, which half a minute of g++ would be spent on
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
        self._adam = torch.optim.AdamW(
            parameter_groups(policy, config.optim.weight_decay),
            lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps, fused=True,
        )  # fmt: skip
        settings = deepspeed_config(config)
        self._stage = config.train.zero_stage
        if self._stage == 3:
            _partition(policy, settings, device, DTYPES[config.model.dtype])
        self._engine = deepspeed.initialize(model=policy, optimizer=self._adam, config=settings)[0]
        self.policy = policy
        self.device = device
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        return scored(self._engine, batch.to(self.device), by_token)

    def backward(self, share: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; shares of the global totals have to be added.
        self._engine.backward(share * self.ranks, scale_wrt_gas=False)

    def step(self, lr: float) -> Tensor:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        skipped = self._engine.optimizer.overflow  # the norm is then that of the step before
        norm = math.inf if skipped else self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float64, device=self.device)

    def all_sum(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        return gather(value)

    def broadcast(self, value: Any) -> Any:
        return broadcast(value)

    def weights(self) -> StateDict | None:
        if self._stage == 3:
            gathered: StateDict | None = self._engine._zero3_consolidated_16bit_state_dict()
            named = (gathered or {}).items()
            # A critic's, beside the model's, do not begin with it.
            return None if self.rank else {k.removeprefix("model."): v for k, v in named if k.startswith("model.")}
        return None if self.rank else dict(self.policy.model.state_dict())

    def pieces(self) -> list[Piece]:
        pieces = []
        for name, start, elements, flat, offset in self._runs():
            state = adam_state(self._adam, flat)
            parts = (flat, state["exp_avg"], state["exp_avg_sq"])
            pieces.append(Piece(name, start, *(part.detach().narrow(0, offset, elements) for part in parts)))
        return pieces

    def _runs(self) -> Iterator[_Run]:
        zero, flats = self._engine.optimizer, self._flats()
        trained = {p: name for name, p in self.policy.named_parameters() if p.requires_grad}
        if self._stage == 3:
            for parameter, name in trained.items():
                group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
                start = self.rank * padded
                elements = min(padded, parameter.ds_numel - start)  # type: ignore[attr-defined]
                if elements > 0:
                    yield _Run(name, start, elements, flats[group], offset)
            return
        groups = zero.bf16_groups if self._bf16_optimizer else zero.bit16_groups
        for group, flat in zip(groups, flats, strict=True):
            for parameter in group:
                if parameter._hp_mapping is not None:  # some of it is in this rank's partition
                    here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                    yield _Run(trained[parameter], here.start, here.numel, flat, there.start)

    def _flats(self) -> list[Tensor]:
        """DeepSpeed's float32 partitions of this rank."""
        zero = self._engine.optimizer
        flats: list[Tensor]
        if self._stage == 3:
            flats = zero.fp32_partitioned_groups_flat
        elif self._bf16_optimizer:
            flats = zero.fp32_groups_flat_partition
        else:
            flats = zero.single_partition_of_fp32_groups
        return flats

    @property
    def _bf16_optimizer(self) -> bool:
        """DeepSpeed has an optimizer apart for stage 1 in bfloat16, but where states are offloaded."""
        return hasattr(self._engine.optimizer, "bf16_groups")

    @property
    def updates(self) -> int:
        return adam_updates(adam_state(self._adam, flat) for flat in self._flats())

    def filled(self, updates: int) -> None:
        zero = self._engine.optimizer
        for flat in self._flats():
            adam_state(self._adam, flat)["step"].fill_(updates)
        if self._stage < 3:
            zero.update_lp_params()
            return
        for group in range(len(self._flats())):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        kept_whole = zero.persistent_parameters
        if kept_whole:  # small ones that every rank has gathered already
            kept_whole[0].partition(kept_whole)
            kept_whole[0].all_gather(kept_whole)


def _partition(policy: Scorer, settings: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Keep of each parameter this rank's part alone, on `device`. They get there one at a time: a device need not hold
    them all, and host memory neither, for weights are mapped from their files until they are read."""
    import deepspeed

    for buffer in policy.buffers():
        buffer.data = buffer.data.to(device)
    first = next(policy.parameters())
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(device, dtype, copy=True)  # DeepSpeed writes to it
        if parameter is first:
            deepspeed.zero.Init(module=nn.ParameterList([first]), config_dict_or_path=settings)
        else:
            first.convert_to_zero_parameters(param_list=[parameter])  # type: ignore[attr-defined]


def _import_without_compiler(module: str) -> None:
    """Import a module that has functions compiled which nothing here calls.

    DeepSpeed imports its Muon optimizer at each start; that alone has torch import its compiler, a second of CPU time.
    """
    compiled = torch.compile
    torch.compile = lambda function=None, **options: function or (lambda decorated: decorated)  # type: ignore[assignment]
    try:
        importlib.import_module(module)
    finally:
        torch.compile = compiled


def engine_for(policy: Scorer, config: TrainConfig, device: torch.device) -> Engine:
    """The engine that a run's settings ask for, on the ranks there are.

    ZeRO divides states among ranks. With one rank stages 1 and 2 have nothing to divide, and the plain engine computes
    the same without DeepSpeed's copies (benchmarks/NOTES.md); offloading and DeepSpeed settings of one's own need it.
    """
    alone = torch.distributed.get_world_size() == 1
    plain = config.train.zero_stage < 3 and not config.train.offload_optimizer and not config.train.deepspeed
    if config.train.zero_stage == 0 or (alone and plain):
        return TorchEngine(policy, config.optim, device)
    return DeepSpeedEngine(policy, config, device)


def local_rank(device: torch.device) -> str:
    """`LOCAL_RANK` of a process that computes on this CUDA `device`.

    DeepSpeed takes it for the device's index among those that the process sees, as transformers does. Ray Train sets it
    to the worker's number on its node: another one where each worker sees its own device alone, or where Ray's ids are
    not in the order of workers.
    """
    return str(device.index or 0)


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run."""
    stage, half = config.train.zero_stage, config.model.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": stage}
    if torch.cuda.is_available():  # reduce gradients on a stream of their own, beside backward
        zero |= {"overlap_comm": True}
    if stage < 3:  # by default it all-reduces each bucket too, but cut up into a copy that it divides in bfloat16
        zero |= {"reduce_scatter": False}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    if config.train.offload_optimizer:
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    settings = {
        # Micro-batches are cut by the schedule; DeepSpeed is told nothing of them but their boundary.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half, "check_grad_overflow": True},  # a gradient that is not finite updates nothing
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # in bfloat16 a sum over ranks would lose the small gradients
        "steps_per_print": 10**12,
    }
    return laid_over(settings, config.train.deepspeed)
