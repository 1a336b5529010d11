"""What can be known of a run's rewards before workers start (issue 19)."""

from __future__ import annotations

from orpo_ray.config import TrainConfig
from orpo_ray.data.prepare import PreparedData
from orpo_ray.data.questions import prompts_of
from orpo_ray.inference.critic import critic_of, require_reference_tokens
from orpo_ray.inference.rewards import find_rewards, look_at
from orpo_ray.modeling.loading import load_tokenizer

_LOOKED_AT = 16
"""Prompts that reward models are shown."""


def require_rewards(config: TrainConfig, data: PreparedData) -> list[str]:
    """What those who score make of the first prompts that a person may not expect, each in a line.

    Raises `UserError`, naming the key, where one is not there, or cannot be asked such prompts; and where the critic
    has nothing to start from, or the reference has other tokens.
    """
    assert config.rollouts is not None
    sources = find_rewards(config.rollouts, trust_remote_code=config.model.trust_remote_code)
    tokenizer = load_tokenizer(config.model)
    require_reference_tokens(config, tokenizer)
    if config.objective.has_critic:
        critic_of(config, tokenizer)
    prompts = prompts_of(data.train)
    return look_at(sources, [prompts.question(i) for i in range(min(len(prompts), _LOOKED_AT))])
