"""What a run's settings, its data and its end say that whoever began it may not expect, each in a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.data.lengths import HELD, suggested, together
from orpo_ray.data.schedule import RoundSchedule, StepSchedule
from orpo_ray.parsing import finite
from orpo_ray.training.lr import learning_rate, steps_of_warmup, warmup_steps

if TYPE_CHECKING:
    from orpo_ray.data.prepare import PreparedData

CUT_TOO_OFTEN = 0.05
"""Of chosen responses: more of them than this teach a model to stop nowhere."""
_MARGIN_DIGITS = 3
"""A margin falls where these decimals show it."""
_CONTRASTS = {
    objective.model_fields["name"].default for objective in OBJECTIVES
    if not objective.best_alone and not objective.rolls_out
}  # fmt: skip
"""Names of the objectives that part chosen from rejected responses of their data."""
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


def cut_answers(config: TrainConfig, data: PreparedData) -> str:
    """Where more than `CUT_TOO_OFTEN` of the records of `data.train` have a chosen response cut."""
    accounts = [account for key, account in data.accounts.items() if key.startswith("data.train")]
    kept, cut = sum(account.kept for account in accounts), sum(account.cut_chosen for account in accounts)
    if cut <= CUT_TOO_OFTEN * kept:
        return ""
    uncut = together(account.uncut for account in accounts)
    limits = None if uncut is None else suggested(uncut)
    hint = "" if limits is None else f"; into data.max_length={limits.max_length} fit {HELD}% of the records whole"
    return (
        f"{cut:,} of {kept:,} chosen responses ({cut / kept:.1%}) are cut to fit into data.max_length="
        f"{config.data.max_length}, and do not teach where to stop{hint} (`orpo-ray data` shows how long they are)"
    )


def long_warmup(asked: Any, total: float) -> str:
    """Where warm-up is at least half of `total` steps; `asked`: as `optim.warmup_steps`."""
    warmup = steps_of_warmup(total, finite(asked)) if total > 1 else 0  # a single step has no room to rise in
    if not 2 * warmup >= total > 1:  # nor is what is not known, NaN
        return ""
    return (
        f"warm-up is {min(warmup, total):g} of the {total:,.0f} steps (optim.warmup_steps={asked:g}): at least half of "
        "the run is at less than optim.lr"
    )


def fallen_margin(objective: str, evaluations: Iterable[Mapping[str, Any]], kept: int | None) -> str:
    """Where an objective that parts chosen from rejected ends with less between them than it began with: at the last of
    `evaluations` (lines of metrics), or at that of the `kept` step.

    The margin is of rewards where the objective has any, else of mean log-probs.
    """
    margins = [(int(line["step"]), *found) for line in evaluations if (found := _margin_of(line)) is not None]
    if objective not in _CONTRASTS or len(margins) < 2:
        return ""
    (start, first, kind), (end, last, _) = margins[0], margins[-1]
    at_kept = next((margin for step, margin, _ in margins if step == kept and start < step < end), None)
    shown = round(first, _MARGIN_DIGITS)
    fallen = [
        f"{margin:.{_MARGIN_DIGITS}f} at {what}"
        for what, margin in ((f"step {kept}, whose model is kept", at_kept), (f"step {end}, the last", last))
        if margin is not None and round(margin, _MARGIN_DIGITS) < shown
    ]
    if not fallen:
        return ""
    return (
        f"the margin of held-out pairs ({kind} of chosen − rejected) fell: {first:.{_MARGIN_DIGITS}f} at step {start}, "
        f"{', and '.join(fallen)}: the model parts chosen from rejected less than before"
    )


def _margin_of(line: Mapping[str, Any]) -> tuple[float, str] | None:
    """Of an evaluation, and what it is the margin of."""
    reward, chosen, rejected = (
        finite(line.get(f"eval_{name}")) for name in ("reward_margin", "logps_chosen", "logps_rejected")
    )
    found = (reward, "reward") if "eval_reward_margin" in line else (chosen - rejected, "log-prob")
    return found if math.isfinite(found[0]) else None


def _endless_warmup(config: TrainConfig, schedule: Schedule) -> str:
    total, optim = schedule.total_steps, config.optim
    if warmup_steps(total, optim) < max(total, 2):  # a single step has no room to rise in
        return long_warmup(optim.warmup_steps, total)
    return (
        f"optim.warmup_steps={optim.warmup_steps:g} is as long as the run ({total} steps): the learning rate only "
        f"rises, to {learning_rate(total - 1, total, optim):.3g} in the last step, of optim.lr={optim.lr:.3g}"
    )
