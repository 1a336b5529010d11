"""From scored responses to what each of their tokens is to learn (issue 19): float64, the same on every rank.

Arrays of tokens are flat, `(tokens,)`: those of one response after those of another, responses of one prompt together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config.objectives import GrpoConfig, PolicyGradientSection, PpoConfig, RlooConfig, TokenColumn
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.objectives.advantages import (
    gae,
    group_relative,
    importance,
    leave_one_out,
    response_totals,
    token_rewards,
    whitened,
)

Floats = NDArray[np.float64]


def learned_scores(scores: Sequence[float], cut: Sequence[bool], rollouts: RolloutsConfig) -> Floats:
    """`(samples,)`: the scores that are learned from, held within `clip_scores`, less `cut_penalty` where a response
    was cut."""
    found = np.asarray(scores, np.float64)
    if rollouts.clip_scores is not None:
        found = found.clip(-rollouts.clip_scores, rollouts.clip_scores)
    return found - rollouts.cut_penalty * np.asarray(cut, np.float64)


def credited(
    objective: PolicyGradientSection,
    rollouts: RolloutsConfig,
    *,
    scores: Floats,
    lengths: NDArray[np.int64],
    groups: NDArray[np.int64],
    old: Floats,
    engine: Floats,
    reference: Floats,
    values: Floats | None,
    coefficient: float,
) -> dict[TokenColumn, NDArray[np.float32]]:
    """The columns that the loss of `objective` reads.

    `scores (samples,)` as they are learned from; `lengths (samples,)` in tokens; `groups (prompts,)`: how many samples
    each prompt has; log-probs by the old policy, as the engine gave them, and by the reference; the critic's `values`;
    the KL's `coefficient`.
    """
    kl = old - reference
    columns: dict[TokenColumn, Floats] = {"old_logps": old}
    if isinstance(objective, PpoConfig):
        assert values is not None
        rewards = token_rewards(scores, kl, lengths, coefficient)
        advantages = gae(rewards, values, lengths, gamma=objective.gamma, lambda_=objective.gae_lambda)
        columns |= {"old_values": values, "returns": advantages + values}
        columns["advantages"] = whitened(advantages) if objective.whiten_advantages else advantages
    else:
        totals = scores - coefficient * response_totals(kl, lengths)
        parts = np.split(totals, groups.cumsum()[:-1])
        of_groups = [
            group_relative(part, len(part), scale=objective.scale_advantages)
            if isinstance(objective, GrpoConfig)
            else leave_one_out(part, len(part))
            for part in parts
        ]
        columns["advantages"] = np.concatenate(of_groups).repeat(lengths)
    whole = lengths if isinstance(objective, RlooConfig) else None  # a response is one action there
    columns["importance"] = importance(old, engine, rollouts.importance_cap, whole)
    return {name: column.astype(np.float32) for name, column in columns.items()}
