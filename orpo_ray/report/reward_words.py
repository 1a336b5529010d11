"""What the page of a reward model says: rewards in their own unit, how often it is right, nothing of log-probs."""

from __future__ import annotations

from orpo_ray.report.numbers import describe_change, number
from orpo_ray.report.runs import Run

COLUMNS = {
    "eval_loss": "loss",
    "eval_rewards_chosen": "chosen reward",
    "eval_rewards_rejected": "rejected reward",
    "eval_reward_margin": "reward margin",
    "eval_reward_accuracy": "reward accuracy",
    "eval_calibration_error": "calibration error",
}
"""Of the table of evaluations."""


def is_reward_model(run: Run) -> bool:
    return run.section("objective").get("name") == "reward"


def margin_fact(run: Run) -> tuple[str, str, str]:
    """What it is, the number, and a word on it."""
    margin, start = (run.value_at("eval_reward_margin", step) for step in (run.kept_step, 0))
    origin = "" if start is None else f"from {number(start)} at step 0; "
    return "Eval reward margin", number(margin), f"{origin}chosen − rejected, in the reward's unit"


def rewards_caption(run: Run) -> str:
    changes = [(name, describe_change(run, f"eval_rewards_{name}")) for name in ("chosen", "rejected")]
    said = "; ".join(f"{name} {change}" for name, change in changes if change)
    return f"Mean rewards on held-out pairs: {said}." if said else ""


def margin_caption(run: Run) -> str:
    change = describe_change(run, "eval_reward_margin")
    return f"On held-out pairs: {change}, in the reward's unit." if change else ""
