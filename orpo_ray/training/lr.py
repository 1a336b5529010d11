"""Learning-rate schedules: a pure function of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math

from orpo_ray.config import OptimConfig


def warmup_steps(total_steps: int, optim: OptimConfig) -> float:
    """Of `total_steps`; `optim.warmup_steps` below 1 is a fraction of them."""
    return round(optim.warmup_steps * total_steps) if optim.warmup_steps < 1 else optim.warmup_steps


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
