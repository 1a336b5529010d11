"""What a model gives pairs that it is not trained on: held-out metrics, scores, and KTO's reference point."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orpo_ray.config import TrainConfig
from orpo_ray.config.metrics import of_unseen
from orpo_ray.config.objectives import Column
from orpo_ray.data.dataset import Pairs, Texts
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.schedule import Indices
from orpo_ray.objectives.registry import Columns, Objective
from orpo_ray.objectives.terms import Totals
from orpo_ray.training.batches import MicroBatch, Work, micro_batches, plan, predictions, rows_of, totals_of
from orpo_ray.training.engine import Engine, evaluating


def evaluate(
    engine: Engine, config: TrainConfig, objective: Objective, held_out: Pairs
) -> tuple[dict[str, float], Tensor]:
    """Global means over all held-out pairs, under the keys `eval_*`, and the table they were made of (see `scores`);
    of several sources those of each, too, under `eval_*/NAME`.

    Always packs all responses: also for SFT it is worth seeing where the rejected one goes (Figure 3).
    """
    of_all: dict[Column, Tensor] = {}
    everything = np.arange(len(held_out))
    if objective.judges_labels:
        work = planned(engine, config, objective, mismatched(held_out), everything)
        of_all["baseline"] = reference_point(engine, micro_batches([work], engine.device))
    table = scores(engine, config, objective, held_out)[0]
    metrics, in_rows, lengths = _measured(objective, held_out, everything, table, of_all)
    evaluation = {f"eval_{name}": value for name, value in metrics.items()}
    for source, (start, end) in (held_out.spans if isinstance(held_out, JoinedPairs) else {}).items():
        metrics = _measured(objective, held_out, np.arange(start, end), table, of_all)[0]
        evaluation |= {f"eval_{name}/{source}": value for name, value in metrics.items()}
    if objective.diagnose is not None:
        evaluation |= {f"eval_{name}": value for name, value in objective.diagnose(in_rows, lengths).items()}
    return evaluation, table


def evaluate_both(
    engine: Engine, config: TrainConfig, objective: Objective, held_out: Pairs, unseen: Pairs | None
) -> tuple[dict[str, float], Tensor]:
    """As `evaluate` of `held_out`, and beside it the metrics of `unseen`, under `eval_unseen_*`."""
    evaluation, table = evaluate(engine, config, objective, held_out)
    apart = {} if unseen is None else evaluate(engine, config, objective, unseen)[0]
    return evaluation | {of_unseen(name): value for name, value in apart.items()}, table


def _measured(
    objective: Objective, data: Pairs, indices: Indices, table: Tensor, of_all: Columns
) -> tuple[dict[str, float], NDArray[np.float64], NDArray[np.int64]]:
    """The metrics over the records at `indices` of `data`, from the `table` of all and what is one of all rows; and of
    their rows what the model gave, and tokens."""
    compared, device = data.compared(indices), table.device
    rows = rows_of(data, indices, best_alone=False).to(device)
    records, columns = (torch.from_numpy(part).to(device) for part in (compared.records, compared.columns))
    given = table[torch.from_numpy(indices).to(device)], predictions(data, indices, objective.score_prompts).to(device)
    in_rows, lengths = (values[records[:, None], columns] for values in given)
    totals = totals_of(data, indices, best_alone=False, score_prompts=objective.score_prompts)
    metrics = objective.loss(in_rows, lengths, totals, {**rows.columns, **of_all})[1]
    found = {name: float(value) for name, value in metrics.items()}
    return found, in_rows.cpu().numpy(), compared.of(data.lengths(indices))


def scores(engine: Engine, config: TrainConfig, objective: Objective, data: Pairs) -> tuple[Tensor, Totals]:
    """What the model gives every record of `data`: `(records, 1 + K)` float64 of the prompt and each response, of pairs
    `(pairs, 3)`; NaN where a record has fewer responses than another.

    Log-prob sums of a policy, rewards of a reward model. Every rank must call it, and has the whole table after.
    """
    work = planned(engine, config, objective, data, np.arange(len(data)))
    numbers = 1 + data.counts()
    columns = np.arange(numbers.max())
    table = torch.zeros(len(data), len(columns), dtype=torch.float64, device=engine.device)
    with evaluating(engine.policy):
        for _, pairs, batch, _, _ in micro_batches([work], engine.device):
            scored = engine.forward(batch)  # a filler too: every rank takes part in every forward
            if batch.weight:
                places = np.nonzero(columns < numbers[pairs][:, None])
                table[torch.from_numpy(pairs[places[0]]), torch.from_numpy(places[1])] = scored.double()
    table = engine.all_sum(table)
    table[torch.from_numpy(columns >= numbers[:, None])] = torch.nan
    return table, work.totals


def mean_reward(engine: Engine, config: TrainConfig, objective: Objective, data: Pairs) -> float:
    """Over all responses of `data`. Every rank must call it."""
    rewards = scores(engine, config, objective, data)[0][:, 1:]
    if not data.are_pairs:
        rewards = rewards[torch.from_numpy(data.ranks() >= 0)]
    return float(rewards.mean())


def reference_point(engine: Engine, feed: Iterator[MicroBatch]) -> Tensor:
    """KTO's z0 `()`, float64: the mean log-ratio of policy and reference over the next step of `feed`, whose prompts
    have other prompts' responses; 0 where that is negative. One number for all ranks and micro-batches, no gradient.
    """
    log_ratio = torch.zeros(1, dtype=torch.float64, device=engine.device)
    with evaluating(engine.policy):
        for micro_batch in feed:
            work, _, batch, rows, last = micro_batch.to(engine.device)
            sums = rows.lay_out(engine.forward(batch), batch.prompts)[:, 1:]  # (records, 1)
            log_ratio += (sums.double() - rows.columns["reference"]).sum() * batch.weight
            if last:
                break
    return (engine.all_sum(log_ratio)[0] / work.totals.records).clamp(min=0)


def planned(
    engine: Engine,
    config: TrainConfig,
    objective: Objective,
    data: Texts,
    indices: Indices,
    best_alone: bool = False,
) -> Work:
    """The records at `indices` as this rank's share of a step, or of an evaluation."""
    return plan(
        data, indices, best_alone=best_alone, score_prompts=objective.score_prompts,
        rank=engine.rank, ranks=engine.ranks, budget=config.train.tokens_per_microbatch,
    )  # fmt: skip


def mismatched(data: Pairs) -> Texts:
    """Of labelled data the prompts with other prompts' responses."""
    assert data.mismatched is not None, "labelled data have them from `prepare`"
    return data.mismatched
