"""What an evaluation measures, known before there is a model: so a name that it never gives is refused early."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from orpo_ray.config import TrainConfig
from orpo_ray.config.metrics import REWARD, WIN_RATE
from orpo_ray.config.objectives import ObjectiveConfig
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.errors import UserError
from orpo_ray.objectives.registry import build_objective
from orpo_ray.objectives.terms import Totals

OF_ROLLOUTS = (REWARD, "eval_kl", "eval_response_tokens", "eval_share_cut", "eval_entropy")
"""What is measured of responses to held-out prompts; they have no loss."""


@cache
def evaluation_metrics(objective: ObjectiveConfig) -> tuple[str, ...]:
    """The keys `eval_*` that every evaluation with this objective has: those of its loss of one made-up comparison, or
    what is measured of rollouts."""
    if objective.rolls_out:
        return OF_ROLLOUTS
    built = build_objective(objective)
    columns = 2 if built.judges_labels else 3
    sums, lengths = -torch.ones(1, columns, dtype=torch.float64), torch.ones(1, columns, dtype=torch.int64)
    given = built.loss(
        sums, lengths, Totals(1, 1, 1, 1),
        {
            "reference": sums[:, 1:], "choices": torch.ones(1, dtype=torch.int64),
            "desirable": torch.ones(1, dtype=torch.bool), "baseline": torch.zeros((), dtype=torch.float64),
        },
    )[1]  # fmt: skip
    diagnostics = ["eval_calibration_error"] if built.model == "reward" else []
    return *(f"eval_{name}" for name in given), *diagnostics


def require_metrics(config: TrainConfig, metrics: Iterable[str], held_out: Pairs | None = None) -> None:
    """Raises `UserError`, naming those that there are, where an evaluation of `config` never gives one of `metrics`.

    `held_out`: the pairs, where they are known: a source may have none among them. Diagnostics of a reward model are of
    all sources together. Of rollouts only the reward is told for each of several: by `rollouts.rewards`.
    """
    known = evaluation_metrics(config.objective)
    for metric in metrics:
        name, slash, source = metric.partition("/")
        if name == WIN_RATE:
            continue
        if name not in known or (slash and name == "eval_calibration_error"):
            raise UserError(
                f"{metric}: no evaluation with objective.name={config.objective.name} gives it; there are "
                f"{', '.join(known)}"
            )
        if config.rollouts is not None:
            try:
                config.require_source_of(metric)
            except ValueError as error:
                raise UserError(str(error)) from None
        elif slash and isinstance(held_out, JoinedPairs) and source not in held_out.spans:
            raise UserError(f"{metric}: none of the held-out pairs is of {source}")
