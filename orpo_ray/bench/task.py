"""What a contestant's process is told to do, and the pairs that it is to do it with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from orpo_ray.config import TrainConfig
from orpo_ray.config.benchmark import TrainerName
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.packing import Ids
from orpo_ray.data.prepare import prepare
from orpo_ray.data.schedule import StepSchedule
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_tokenizer, require_embeddings
from orpo_ray.training.source import build_schedule

Pair = tuple[Ids, Ids, Ids]
"""Token ids of a prompt, its chosen and its rejected response."""
Parts = dict[str, float]
"""Seconds of a step by what they went into."""


class Unavailable(Exception):
    """This contestant cannot run here; says why in one line."""


class Turn(Protocol):
    """How a contestant gives up the machine after a step, and gets it back."""

    def __call__(
        self, *, seconds: float | None = None, resident: int | None = None, parts: Parts | None = None
    ) -> bool:
        """End the step before, wait, and return whether the parts of the next step are to be timed.

        `seconds`, `resident` (bytes): of the step before, where the contestant measured it itself; `parts`: of the
        step before, where they were asked for. Raises `Finished` (`process.py`) after the last turn: let it pass.
        """


class Contestant(Protocol):
    def run(self, turn: Turn) -> None:
        """Call `turn` before each optimizer step (and after the last), and take that step."""


@dataclass(frozen=True)
class Task:
    """One contestant's work: `steps` optimizer steps, of which `warm_up` come before measuring."""

    trainer: TrainerName
    config: TrainConfig
    stretch: int | None
    warm_up: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer, "stretch": self.stretch, "warm_up": self.warm_up, "steps": self.steps,
            "config": self.config.model_dump(mode="json", by_alias=True),
        }  # fmt: skip

    @classmethod
    def from_json(cls, message: dict[str, Any]) -> Task:
        return cls(**{**message, "config": TrainConfig.model_validate(message["config"])})

    @property
    def device(self) -> torch.device:
        asked = self.config.scaling.use_gpu
        on_gpu = torch.cuda.is_available() if asked == "auto" else asked
        return torch.device("cuda" if on_gpu else "cpu")

    @cached_property
    def data(self) -> PairDataset:
        """The training pairs, with the first of each step stretched where the task says so."""
        tokenizer = load_tokenizer(self.config.model)
        data = prepare(self.config, tokenizer)
        require_embeddings(self.config.model, tokenizer, data.highest)
        pairs = data.train
        if not isinstance(pairs, PairDataset):
            raise UserError("run.data.train: has to be one source for a benchmark")
        if not pairs.are_pairs:
            raise UserError(
                f"{self.config.data.train}: trainers are compared on pairs; set data.comparisons=best_against_worst, "
                "and another objective than kto"
            )
        if self.stretch is None:
            return pairs
        schedule = build_schedule(self.config, pairs)
        return stretched(pairs, [int(schedule.indices(step)[0]) for step in range(self.steps)], self.stretch)

    @property
    def schedule(self) -> StepSchedule:
        return build_schedule(self.config, self.data)

    def pairs(self, step: int) -> list[Pair]:
        """The pairs of optimizer step `step` (from 0), in the schedule's order."""
        found = []
        for pair in self.schedule.indices(step).tolist():
            prompt, chosen, rejected = self.data.pair(pair)
            found.append((prompt, chosen, rejected))
        return found


def stretched(data: PairDataset, pairs: list[int], factor: int) -> PairDataset:
    """`data` with the prompt, chosen and rejected of `pairs` made `factor` times longer.

    Their tokens repeat; a prompt keeps its first token (BOS) first, a response its last (EOS) last.
    """
    tokens, bounds, end = [np.asarray(data.tokens)], np.array(data.bounds), len(data.tokens)
    for pair in dict.fromkeys(pairs):
        prompt, *responses = data.pair(pair)
        longer = [np.r_[prompt[:1], _repeated(prompt[1:], factor * len(prompt) - 1, prompt)]]
        longer += [np.r_[_repeated(ids[:-1], factor * len(ids) - 1, ids), ids[-1:]] for ids in responses]
        ends = end + np.cumsum([len(ids) for ids in longer])
        bounds[pair] = [end, *ends]
        tokens += longer
        end = int(ends[-1])
    return PairDataset(np.concatenate(tokens).astype(np.int32), bounds, data.record_ids)


def _repeated(ids: Ids, length: int, otherwise: Ids) -> Ids:
    """`ids` over and over, `length` tokens; where there are none, `otherwise`."""
    return np.resize(ids if len(ids) else otherwise, length)
