"""From a trainer's name to what takes the steps."""

from __future__ import annotations

from orpo_ray.bench.task import Contestant, Task


def load(task: Task) -> Contestant:
    """The contestant of `task` with model and data in place. Raises `Unavailable` where it cannot run here."""
    match task.trainer:
        case "orpo_ray":
            from orpo_ray.bench.trainers.own import Own

            return Own(task)
        case "ray":
            from orpo_ray.bench.trainers.cluster import ThroughRay

            return ThroughRay(task)
        case "trl":
            from orpo_ray.bench.trainers.trl import Trl

            return Trl(task)
        case "padded":
            from orpo_ray.bench.trainers.padded import Padded

            return Padded(task)
        case "liger":
            from orpo_ray.bench.trainers.liger import Liger

            return Liger(task)
