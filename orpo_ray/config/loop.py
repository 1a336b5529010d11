"""How training goes: the optimizer's settings and the loop's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orpo_ray.config.metrics import WIN_RATE, Direction, Metric, known_direction, like, require_choosing, spoken
from orpo_ray.config.section import Count, Fraction, FreeForm, Integer, Number, Section


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: Annotated[Number, Field(gt=0)] = 8.0e-6
    """The highest learning rate, at the end of the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    """How it goes on from there."""
    warmup_steps: Annotated[Number, Field(ge=0)] = 100
    """Steps of linear warm-up; below 1: a fraction of all steps."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """AdamW decay of matrices; biases and norms are never decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's."""
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    """AdamW's."""
    max_grad_norm: Annotated[Number, Field(gt=0)] | None = 1.0
    """Gradients of a greater norm, over all weights, are scaled down to it; null: none is."""


_NAMED_HERE = {
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "train_batch_size": "train.global_batch_size",
    "gradient_allreduce_op": "train.global_batch_size, over which losses are means",
    "train_micro_batch_size_per_gpu": "train.tokens_per_microbatch",
    "gradient_accumulation_steps": "train.tokens_per_microbatch",
    "activation_checkpointing": "train.memory",
    "elasticity": "scaling.num_workers",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.cpu_offload": "train.offload_optimizer",
    "zero_optimization.offload_optimizer.device": "train.offload_optimizer",
}
"""Keys of DeepSpeed's configuration, and those here that decide the same."""


def _holds(mapping: Any, path: list[str]) -> bool:
    """Whether `mapping` says something at `path`, or has no mapping on the way there."""
    for key in path:
        if not isinstance(mapping, dict):
            return True
        if key not in mapping:
            return False
        mapping = mapping[key]
    return True


class LoopConfig(Section):
    """How training goes: steps and their memory, evaluations, checkpoints, the model that is kept."""

    epochs: Count = 1
    """Passes over the pairs or prompts."""
    max_steps: Count | None = None
    """So many optimizer steps, whatever `epochs` says: it is cut short, or repeated. Schedules end there too."""
    global_batch_size: Count = 64
    """Pairs in one optimizer step, over all workers."""
    tokens_per_microbatch: Count = 8192
    """Packed tokens that one worker computes at once; changes memory and speed, not the result."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO: workers share out optimizer states (1), gradients (2) and weights (3) too; 0: plain
    PyTorch."""
    deepspeed: FreeForm = Field(default_factory=dict)
    """DeepSpeed settings of your own (bucket sizes, overlap, …), merged over those made from this file. What this file
    has keys for is refused."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (ZeRO 1 to 3)."""
    memory: Literal["auto", "none", "selective", "full"] = "auto"
    """What backward computes again to save memory: nothing, all but matrix products and attention, or whole layers
    (gradient checkpointing); `auto`: the least of these that fits. Changes memory and speed, not the result."""
    deterministic: bool = False
    """On GPUs: deterministic kernels and rings alone, so that a run that is resumed on nodes of one kind ends in the
    same bits, as it does on CPUs anyway; engines that it has draw the same whatever they draw beside it. Costs
    speed."""
    eval_every_steps: Count | None = None
    """Default: at each epoch's end."""
    checkpoint_every_steps: Count | None = None
    """Default: at each epoch's end."""
    keep: Literal["best", "last", "both"] = "best"
    """Which evaluated model is in `model/`: the best by `keep_by`, or the last; `both`: the best there, and the last in
    `model-last/`."""
    keep_by: Metric = "eval_loss"
    """What the best model is told by: any metric of an evaluation, with `/NAME` that of one of several sources. A sweep
    sets it for its trials."""
    keep_mode: Literal["auto", "min", "max"] = "auto"
    """Whether the lowest or the highest of `keep_by` is the best; `auto`: as its name says."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept, apart from the models that `keep` names."""
    keep_best_checkpoints: Annotated[Integer, Field(ge=0, le=10**6)] = 0
    """Besides, so many of the best by `keep_by`."""
    checkpoint_every_minutes: Annotated[Number, Field(gt=0)] | None = 10
    """Besides, whenever so long has passed since the last; null: not."""
    max_skipped_steps: Annotated[Integer, Field(ge=0, le=10**6)] = 3
    """Steps in a row whose loss or gradient is not finite that are left out, with their records in `metrics.jsonl`;
    one more ends the run. Of `online` also rounds in a row without a pair."""

    @field_validator("deepspeed")
    @classmethod
    def _names_nothing_twice(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for theirs, ours in _NAMED_HERE.items():
            if _holds(settings, theirs.split(".")):
                raise ValueError(f"{theirs} follows from {ours}; set that")
        return settings

    @model_validator(mode="after")
    def _the_best_can_be_told(self) -> LoopConfig:
        require_choosing("keep_by", self.keep_by)
        if self.keep_by.startswith(WIN_RATE):
            raise ValueError("keep_by: a win-rate is known when training has gone on and its model is gone; keep: last")
        if self.keep_mode == "auto" and known_direction(self.keep_by) is None:
            if (meant := like(self.keep_by)) is not None:
                raise ValueError(f"keep_by: {self.keep_by} is not known; did you mean {meant}? Else say keep_mode")
            raise ValueError(f"keep_mode: is the lowest or the highest {self.keep_by} the best? Say min or max")
        return self

    @property
    def keep_direction(self) -> Direction:
        found = known_direction(self.keep_by) if self.keep_mode == "auto" else self.keep_mode
        assert found is not None
        return found

    @property
    def best(self) -> str:
        """Why the best model is kept, in words."""
        return spoken(self.keep_by, self.keep_direction)

    @model_validator(mode="after")
    def _stage_zero_is_without_deepspeed(self) -> LoopConfig:
        for key in ("offload_optimizer", "deepspeed"):
            if self.zero_stage == 0 and getattr(self, key):
                raise ValueError(f"{key} needs zero_stage 1, 2 or 3: stage 0 runs without DeepSpeed")
        return self
