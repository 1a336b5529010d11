"""What the policy in training, its reference and its critic give each token of responses: by the packed forward that
trains, all ranks together (issue 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from orpo_ray.config import TrainConfig
from orpo_ray.data.packing import PackedBatch
from orpo_ray.data.rollouts import Rollouts
from orpo_ray.errors import Diverged, UserError
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.advantages import Floats
from orpo_ray.training.batches import micro_batches, plan
from orpo_ray.training.engine import Engine, evaluating
from orpo_ray.training.reference import reference_name


def by_token(
    engine: Engine,
    config: TrainConfig,
    reference: PackedPolicy,
    texts: Rollouts,
    where: str,
    names: Sequence[object],
) -> tuple[Floats, ...]:
    """`(tokens,)` each, of all responses of `texts`: log-probs by the policy of `engine` and by `reference`, and the
    critic's values where there is a critic. Every rank must call it.

    Raises `UserError`, which names `where`, whose number, and of which record, where one is not finite. `names`: of the
    records that the rows of `texts` are of.
    """
    with evaluating(engine.policy):
        own = _all_tokens(engine, config, texts, lambda batch: engine.forward(batch, by_token=True))
    with torch.no_grad():
        theirs = _all_tokens(engine, config, texts, lambda batch: reference(batch, by_token=True))
    found = (own[:, 0], theirs[:, 0], *(own[:, column] for column in range(1, own.shape[1])))
    whose: tuple[tuple[type[UserError], str, str], ...] = (
        (Diverged, "the policy", "log-prob"),
        (UserError, f"the reference ({reference_name(config)})", "log-prob"),
        (Diverged, "the critic", "value"),
    )
    ends = texts.lengths()[:, 1:].sum(axis=1).cumsum()
    for values, (error, who, what) in zip(found, whose, strict=False):
        if (odd := np.flatnonzero(~np.isfinite(values))).size:
            row = int(np.searchsorted(ends, odd[0], side="right"))
            told = f"a token of a response to record {names[row]} a {what} of {values[odd[0]]}"
            raise error(f"{where}: {who} gives {told}")
    return found


def _all_tokens(
    engine: Engine, config: TrainConfig, texts: Rollouts, forward: Callable[[PackedBatch], Tensor]
) -> Floats:
    """`(tokens, …)`, of which each rank computes its share."""
    work = plan(
        texts, np.arange(len(texts)), best_alone=False, score_prompts=False,
        rank=engine.rank, ranks=engine.ranks, budget=config.train.tokens_per_microbatch,
    )  # fmt: skip
    tokens = texts.lengths()[:, 1:].sum(axis=1)
    found: dict[int, Floats] = {}
    for micro_batch in micro_batches([work], engine.device):
        scored = forward(micro_batch.batch.to(engine.device))
        if micro_batch.batch.weight:
            rows = scored.double().cpu().numpy().reshape(scored.shape[0], -1)
            parts = np.split(rows, tokens[micro_batch.pairs].cumsum()[:-1])
            found |= dict(zip(micro_batch.pairs.tolist(), parts, strict=True))
    every = {place: part for of_rank in engine.gather(found) for place, part in of_rank.items()}
    return np.concatenate([every[place] for place in range(len(texts))])
