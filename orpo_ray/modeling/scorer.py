"""What training and scoring run: a policy or a reward model, behind the same call."""

from __future__ import annotations

from typing import Literal

from orpo_ray.config import ModelConfig
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel, load_reward_model

Scorer = PackedPolicy | PackedRewardModel
"""Takes a packed batch, returns a float32 number for each sequence: a log-prob sum, or a reward."""


def load_scorer(
    kind: Literal["policy", "reward"], model: ModelConfig, *, seed: int, gradient_checkpointing: bool = False
) -> Scorer:
    """Load `model` as a policy or as a reward model; see `load_policy` and `load_reward_model`."""
    load = load_policy if kind == "policy" else load_reward_model
    return load(model, seed=seed, gradient_checkpointing=gradient_checkpointing)
