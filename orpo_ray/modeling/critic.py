"""A policy with a critic beside it: what PPO trains, as one module with one optimizer (issue 19)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.policy import PackedPolicy

if TYPE_CHECKING:  # it loads models, for which more is needed than a bare GPU box has (doctor/gpu)
    from orpo_ray.modeling.reward import PackedRewardModel


class ActorCritic(PackedPolicy):
    """Two networks without a parameter in common, over the same packed rows.

    `model` is the policy's, so what is exported is a policy; parameters of the critic are called `critic.…`.
    """

    def __init__(self, policy: PackedPolicy, critic: PackedRewardModel) -> None:
        nn.Module.__init__(self)
        self.model, self.alone = policy.model, policy.alone
        self._longest_alike = policy._longest_alike
        self.critic = critic

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        """As `PackedPolicy`; `by_token`: `(predictions, 2)` in float32 of each token's log-prob, and of what the critic
        expects where the token is not drawn yet."""
        logps = super().forward(batch, by_token=by_token)
        return torch.stack([logps, self.critic.values(batch)], dim=1) if by_token else logps
