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
    samples: ArrayLike,
    old_logps: ArrayLike,
    reference_logps: ArrayLike,
    engine_logps: ArrayLike,
    coefficient: float,
    importance_cap: float | None,
    values: ArrayLike | None = None,
) -> dict[TokenColumn, Floats]:
    """The columns `(tokens,)`, in float64, that `settings.columns` names; arrays are as in `advantages`.

    `scores`, `lengths (samples of the round,)`; how many `samples` each prompt has, one number of all or `(prompts,)`,
    those of one prompt behind each other; log-probs of the tokens drawn by the
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
            totals = _by_prompt(response_totals(rewards, counts), samples)
            columns["advantages"] = np.concatenate([leave_one_out(part, len(part)) for part in totals]).repeat(counts)
        case GrpoConfig():
            totals = _by_prompt(response_totals(rewards, counts), samples)
            parts = [group_relative(part, len(part), scale=settings.scale_advantages) for part in totals]
            columns["advantages"] = np.concatenate(parts).repeat(counts)
        case _:
            raise TypeError(f"{type(settings).__name__} has no advantages")
    return columns


def _by_prompt(totals: Floats, samples: ArrayLike) -> list[Floats]:
    counts = np.asarray(samples, dtype=np.int64)
    if counts.ndim == 0:
        counts = np.full(len(totals) // int(counts), counts)
    return np.split(totals, counts.cumsum()[:-1])
