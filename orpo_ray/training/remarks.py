"""What a run's settings do that whoever wrote them may not expect, each in a line."""

from __future__ import annotations

from orpo_ray.config import TrainConfig
from orpo_ray.data.schedule import RoundSchedule, StepSchedule
from orpo_ray.training.lr import learning_rate, warmup_steps

Schedule = StepSchedule | RoundSchedule


def remarks(config: TrainConfig, schedule: Schedule) -> list[str]:
    """To be said before the run of `config` begins."""
    said = _repeated_epochs(schedule), _repeated_prompts(schedule), _endless_warmup(config, schedule)
    return [text for text in (*said, *_not_alike(config)) if text]


def _not_alike(config: TrainConfig) -> list[str]:
    """What of the settings may leave last bits to chance on GPUs, though `train.deterministic` asks for the same."""
    if not config.train.deterministic:
        return []
    said = []
    if config.train.memory == "auto":
        said.append("train.memory=auto may take another level when the run is resumed, which adds up in another order")
    if config.rollouts is not None and config.rollouts.engine == "transformers":
        said.append("rollouts.engine=transformers rounds by what it draws at a time")
    return [f"train.deterministic: on GPUs last bits may still differ: {each}" for each in said]


def _repeated_epochs(schedule: Schedule) -> str:
    steps = schedule.steps_of_epochs
    if schedule.max_steps is None or schedule.max_steps <= steps:
        return ""
    return (
        f"train.max_steps={schedule.max_steps} is more than the {steps} steps of train.epochs={schedule.epochs}, and "
        f"wins: the data is read {schedule.epoch(schedule.total_steps):.1f} times"
    )


def _repeated_prompts(schedule: Schedule) -> str:
    if isinstance(schedule, StepSchedule) or schedule.per_round <= schedule.prompts:
        return ""
    asked, there_are = schedule.per_round, schedule.prompts
    return (
        f"rollouts.prompts={asked} is more than the {there_are} prompts of data.train: a round asks some again, "
        f"{asked / there_are:.1f} times on average"
    )


def _endless_warmup(config: TrainConfig, schedule: Schedule) -> str:
    total, optim = schedule.total_steps, config.optim
    if warmup_steps(total, optim) < max(total, 2):  # a single step has no room to rise in
        return ""
    return (
        f"optim.warmup_steps={optim.warmup_steps:g} is as long as the run ({total} steps): the learning rate only "
        f"rises, to {learning_rate(total - 1, total, optim):.3g} in the last step, of optim.lr={optim.lr:.3g}"
    )
