"""From a round of scored rollouts to the columns that a loss of tokens reads, as the objective's settings say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from orpo_ray.config.objectives import GrpoConfig, PolicyGradientSection, PpoConfig, RlooConfig, TokenColumn
from orpo_ray.objectives.advantages import (
    Floats,
    gae,
    group_relative,
    importance,
    leave_one_out,
    response_totals,
    token_rewards,
    whitened,
)


def token_columns(
    settings: PolicyGradientSection,
    *,
    scores: ArrayLike,
    lengths: ArrayLike,
    samples: int,
    old_logps: ArrayLike,
    reference_logps: ArrayLike,
    engine_logps: ArrayLike,
    coefficient: float,
    importance_cap: float | None,
    values: ArrayLike | None = None,
) -> dict[TokenColumn, Floats]:
    """The columns `(tokens,)`, in float64, that `settings.columns` names; arrays are as in `advantages`.

    `scores`, `lengths (samples of the round,)`, `samples` of them to each prompt; log-probs of the tokens drawn by the
    policy, the reference model and the engine, and the critic's `values` where there is one, all `(tokens,)`.
    `coefficient`: the KL's, as this round has it. RLOO and GRPO judge a response as a whole: its tokens share an
    advantage, of the score less the KL of the whole response.
    """
    old, counts = np.asarray(old_logps, dtype=np.float64), np.asarray(lengths, dtype=np.int64)
    rewards = token_rewards(scores, old - np.asarray(reference_logps, dtype=np.float64), counts, coefficient)
    of_response = counts if isinstance(settings, RlooConfig) else None
    columns: dict[TokenColumn, Floats] = {
        "old_logps": old, "importance": importance(old, engine_logps, importance_cap, of_response),
    }  # fmt: skip
    match settings:
        case PpoConfig():
            assert values is not None, "PPO has a critic"
            found = gae(rewards, values, counts, gamma=settings.gamma, lambda_=settings.gae_lambda)
            old_values = np.asarray(values, dtype=np.float64)
            columns |= {"old_values": old_values, "returns": found + old_values}
            columns["advantages"] = whitened(found) if settings.whiten_advantages else found
        case RlooConfig():
            columns["advantages"] = leave_one_out(response_totals(rewards, counts), samples).repeat(counts)
        case GrpoConfig():
            of_responses = group_relative(response_totals(rewards, counts), samples, scale=settings.scale_advantages)
            columns["advantages"] = of_responses.repeat(counts)
        case _:
            raise TypeError(f"{type(settings).__name__} has no advantages")
    return columns
