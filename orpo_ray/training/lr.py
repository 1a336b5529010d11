"""Learning-rate schedules: a pure function of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math

from orpo_ray.config import OptimConfig


def warmup_steps(total_steps: int, optim: OptimConfig) -> float:
    """Of `total_steps`."""
    return steps_of_warmup(total_steps, optim.warmup_steps)


def steps_of_warmup(total_steps: float, asked: float) -> float:
    """`asked`: as `optim.warmup_steps`, which below 1 is a fraction of `total_steps`."""
    return round(asked * total_steps) if asked < 1 else asked


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`.

    Linear warm-up to `optim.lr`, then: cosine or linear down to 0 at the end, constant, or
    `lr * sqrt(warmup / step)` (inverse_sqrt, as Mistral-ORPO was trained).
    """
    warmup = warmup_steps(total_steps, optim)
    done = step + 1
    if done <= warmup:
        return optim.lr * done / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match optim.schedule:
        case "cosine":
            return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return optim.lr * (1 - progress)
        case "inverse_sqrt":
            return optim.lr * math.sqrt(max(warmup, 1) / done)
        case "constant":
            return optim.lr
