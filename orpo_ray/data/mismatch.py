"""Prompts with another prompt's response: what KTO's reference point is estimated on (arXiv 2402.01306)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orpo_ray.data.comparisons import Compared, Rule, compared
from orpo_ray.data.dataset import Ids, PairDataset
from orpo_ray.data.schedule import mix64, permuted
from orpo_ray.errors import UserError

_DRAW = 2**32 - 1
"""In the place of an epoch, which no run reaches: the order that partners are drawn in."""


@dataclass(frozen=True)
class Mismatched:
    """To each record of `data` a response of another prompt, the same in every epoch: drawn by the seed alone.

    The paper takes the response of the next example of a micro-batch, which would make the loss a function of how a
    step is cut. Here the partner of a record is fixed, so its log-prob under the reference is computed once.
    """

    data: PairDataset
    seed: int
    longest: int
    """Tokens of prompt and response: what is over is cut off the response."""
    reference: NDArray[np.float32] | None = None
    """(records, 1): summed log-probs of the responses under the reference model."""

    def __len__(self) -> int:
        return len(self.data)

    def check(self, source: str, *, held_out: bool = False) -> None:
        """Raises `UserError`, about `source`, where all prompts are the same, so that no response is another's.

        `held_out`: these are the few that were held out of it.
        """
        if not any(self._differ(0, i) for i in range(1, len(self))):
            told = "one prompt alone is held out of it; raise data.eval_fraction, or set data.eval to other data"
            raise UserError(
                f"{source}: KTO's reference point needs responses to other prompts, and "
                f"{told if held_out else 'there is one prompt alone'}"
            )

    def partners(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """(records,): whose response each of the records at `indices` is given: of a pseudo-random permutation the
        record at its place, or the next behind that with another prompt."""
        drawn = permuted(indices.astype(np.int64), len(self), self.seed, _DRAW).tolist()
        for place, (own, other) in enumerate(zip(indices.tolist(), drawn, strict=True)):
            while not self._differ(own, other):
                other = (other + 1) % len(self)
            drawn[place] = other
        return np.array(drawn, np.int64)

    def _differ(self, one: int, other: int) -> bool:
        return one != other and not np.array_equal(self.data.pair(one)[0], self.data.pair(other)[0])

    def _numbers(self, indices: NDArray[np.integer], partners: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the partner's responses."""
        key = mix64(np.array([self.seed], np.uint64))
        return (mix64(indices.astype(np.uint64) ^ key) % self.data.counts(partners).astype(np.uint64)).astype(np.int64)

    def pair(self, i: int) -> tuple[Ids, Ids]:
        """Token ids of the prompt of record `i`, and of its partner's response."""
        index = np.array([i])
        partners = self.partners(index)
        prompt = self.data.pair(i)[0]
        response = self.data.pair(int(partners[0]))[1 + int(self._numbers(index, partners)[0])]
        return prompt, response[: self.longest - len(prompt)]

    def counts(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records,): one response each."""
        return np.ones(len(self) if indices is None else len(indices), np.int64)

    @property
    def rule(self) -> Rule:
        return "labels"

    @property
    def are_pairs(self) -> bool:
        return False

    def ranks(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, 1): there is nothing to rank."""
        return np.zeros((len(self) if indices is None else len(indices), 1), np.int64)

    def compared(self, indices: NDArray[np.integer] | None = None) -> Compared:
        """Each response by itself."""
        return compared(self.ranks(indices), self.rule)

    def lengths(self, indices: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """(records, 2): tokens of prompt and response of the records at `indices`, or of all."""
        indices = np.arange(len(self)) if indices is None else indices
        partners = self.partners(indices)
        prompts = self.data.lengths(indices)[:, 0]
        responses = self.data.lengths(partners)[np.arange(len(indices)), 1 + self._numbers(indices, partners)]
        return np.column_stack([prompts, np.minimum(responses, self.longest - prompts)])

    def identify(self, digest: hashlib.blake2b) -> None:
        """Put into `digest` what decides the numbers that a model gives to these texts."""
        digest.update(f"mismatched {self.seed} {self.longest}".encode())
        self.data.identify(digest)
