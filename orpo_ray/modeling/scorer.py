"""What training and scoring run: a policy or a reward model, behind the same call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import Ids, pack
from orpo_ray.data.schedule import deal
from orpo_ray.modeling.loading import CPU, Warn, load_policy, log_warning
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel, load_reward_model

Scorer = PackedPolicy | PackedRewardModel
"""Takes a packed batch, returns a float32 number for each sequence: a log-prob sum, or a reward."""


def load_scorer(
    kind: Literal["policy", "reward"],
    model: ModelConfig,
    *,
    seed: int,
    device: torch.device = CPU,
    warn: Warn = log_warning,
) -> Scorer:
    """Load `model` as a policy or as a reward model; see `load_policy` and `load_reward_model`."""
    load = load_policy if kind == "policy" else load_reward_model
    return load(model, seed=seed, device=device, warn=warn)


def packed_scores(model: nn.Module, rows: Sequence[Sequence[Ids | Sequence[int]]], budget: int) -> list[list[float]]:
    """What `model` gives every completion: rewards of a reward model, summed log-probs of a policy.

    `rows`: token ids of a prompt and of each of its completions; `budget`: packed tokens at once. A prompt is computed
    once for all of its completions, nothing is padded. How the rows are cut into batches follows from their lengths
    alone, so the same rows give the same bits.
    """
    device = next(model.parameters()).device
    scores: list[list[float]] = [[] for _ in rows]
    answered = [index for index, row in enumerate(rows) if len(row) > 1]
    if not answered:
        return scores
    tokens = np.array([sum(map(len, rows[index])) for index in answered])
    for cut in deal(tokens, ranks=1, budget=budget)[0]:
        members = [answered[i] for i in cut]
        examples = [[np.asarray(ids, np.int32) for ids in rows[member]] for member in members]
        batch = pack(examples, score_prompts=False).to(device)
        with torch.inference_mode():
            values = iter(model(batch)[batch.continuations].double().cpu().tolist())
        for member in members:
            scores[member] = [next(values) for _ in rows[member][1:]]
    return scores
