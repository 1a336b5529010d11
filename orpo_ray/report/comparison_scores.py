"""What a run's kept model gave each held-out comparison (`eval_scores.parquet`), beside what other runs' gave the same.

Policies rank by the mean log-prob of a response's tokens, whatever they were trained by: the file holds summed
log-probs, and no reference model's. Reward models rank by their reward. Left out: labelled responses, of which none is
compared with another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orpo_ray.report.columns import KEY, NUMBER, TEXT, read_columns
from orpo_ray.statistics.paired import Difference, Mean, difference, mean

Floats = NDArray[np.float64]
_LARGEST = 1e100  # no score is; and sums of what is drawn are finite


@dataclass(frozen=True)
class Scores:
    """One run's, `(comparisons,)` each."""

    rewards: bool
    """Whether a reward model gave them."""
    records: NDArray[np.int64]
    """The record of each, counted from 0 in the file's order."""
    chosen: Floats
    """Mean log-probs per token, or rewards."""
    rejected: Floats
    compared: str
    """A digest of which comparisons these are: equal ones are of the same records in the same order."""
    tokens: str
    """A digest of how many tokens each prompt and response has."""

    @property
    def right(self) -> Floats:
        """1 where chosen has the greater score, 0.5 for a tie, else 0."""
        return (np.sign(self.chosen - self.rejected) + 1) / 2

    @property
    def margin(self) -> Floats:
        return self.chosen - self.rejected


@dataclass(frozen=True)
class Summary:
    """Of one run: how often it ranks right, and what it gives in the mean."""

    accuracy: Mean
    chosen: Mean
    margin: Mean


@dataclass(frozen=True)
class Contrast:
    """Of two runs on the same comparisons; `None`: in units of their own."""

    accuracy: Difference
    chosen: Difference | None
    margin: Difference | None


def read_scores(file: Path, *, rewards: bool) -> Scores | str:
    """Those of a run, or why it has none that can be compared, in words that go behind its name and a colon.

    Raises `UserError`, naming the file, where it is there and cannot be read.
    """
    if not file.is_file():
        return f"no {file.name}, which comes with the first model that is kept"
    found = read_columns(file, {"record": KEY}, {"response": NUMBER})
    if "response" in found:
        return "its held-out responses have labels, and none is compared with another"
    lengths = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
    numbers = {"chosen": NUMBER, "rejected": NUMBER}
    table = read_columns(file, {"record": KEY, **dict.fromkeys(lengths, KEY), **numbers}, {"source": TEXT})
    chosen, rejected = (np.array(table[name], dtype=np.float64) for name in numbers)
    tokens = np.array([table[name] for name in lengths], dtype=np.int64)
    if not len(chosen):
        return f"{file.name} holds no comparison"
    if not (np.abs(np.r_[chosen, rejected]) < _LARGEST).all():
        return f"{file.name} holds a score that is not finite"
    if not rewards:
        if (tokens[1:] < 1).any():
            return f"{file.name} holds a response without tokens"
        chosen, rejected = chosen / tokens[1], rejected / tokens[2]
    names = table.get("source") or [""] * len(chosen)
    places: dict[tuple[str, int], int] = {}
    records = np.array([places.setdefault(key, len(places)) for key in zip(names, table["record"], strict=True)])
    compared = hashlib.blake2b(repr((names, table["record"])).encode(), digest_size=16).hexdigest()
    cut = hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()
    return Scores(rewards, records, chosen, rejected, compared, cut)


def summary(scores: Scores) -> Summary:
    return Summary(
        mean(scores.right, scores.records, bound=1.0),
        mean(scores.chosen, scores.records),
        mean(scores.margin, scores.records),
    )


def contrast(a: Scores, b: Scores) -> Contrast:
    """A less B, on comparisons that are the same (see `Scores.compared`). Log-probs of other tokens, and rewards, whose
    zero and unit are each model's own, are not subtracted."""
    alike = not a.rewards and a.tokens == b.tokens
    return Contrast(
        difference(a.right, b.right, a.records, bound=1.0),
        difference(a.chosen, b.chosen, a.records) if alike else None,
        difference(a.margin, b.margin, a.records) if alike else None,
    )
