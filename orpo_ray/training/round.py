"""What is drawn and scored in a round, and what its steps train on (issue 19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config.objectives import TokenColumn
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.data.dataset import Ids, PairDataset, Prompts
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.rollouts import Rollouts, as_pairs
from orpo_ray.data.schedule import Indices, RoundSchedule, apportioned
from orpo_ray.inference.live import Sample
from orpo_ray.inference.rewards import Scored
from orpo_ray.objectives.advantages import Floats
from orpo_ray.training.source import Arrays


class Written(NamedTuple):
    """Responses to some prompts by the policy of one step, with their scores, in the order of prompts and samples."""

    samples: list[Sample]
    scored: list[Scored]
    seconds: float
    """That drawing took."""
    scoring_seconds: float


@dataclass(frozen=True)
class Round:
    """What the steps of a round train on."""

    number: int
    texts: Rollouts | PairDataset
    records: list[int]
    """Of the training prompts, that each row of `texts` is of."""
    steps: list[NDArray[np.int64]]
    """Rows of `texts`; none of a round that is passed over."""
    arrays: Arrays
    """All that this was made of, which a checkpoint in the middle of it keeps."""

    @classmethod
    def of(cls, number: int, arrays: Arrays, train: Prompts, schedule: RoundSchedule, *, pairs: bool) -> Round:
        """The round that these arrays are of; `pairs`: each prompt's best and worst response alone. Without responses
        it is one that is passed over."""
        if "ids" not in arrays:
            return cls(number, Rollouts([], [], {}), [], [], arrays)
        records = [int(record) for record in arrays["records"]]
        prompts = [train.pair(record)[0] for record in records]
        counts, lengths = arrays["counts"].astype(np.int64), arrays["lengths"].astype(np.int64)
        every = np.split(arrays["ids"].astype(np.int32), lengths.cumsum()[:-1])
        ends = counts.cumsum()
        groups = [every[end - count : end] for end, count in zip(ends, counts, strict=True)]
        texts: Rollouts | PairDataset
        if pairs:
            sums = arrays["reference"].astype(np.float32)
            best, worst = zip(
                *((end - count + int(scores.argmax()), end - count + int(scores.argmin()))
                  for end, count in zip(ends, counts, strict=True)
                  for scores in [arrays["scores"][end - count : end].astype(np.float64)]),
                strict=True,
            )  # fmt: skip
            reference = np.column_stack([sums[[*best]], sums[[*worst]]])
            texts = as_pairs(prompts, [every[i] for i in best], [every[i] for i in worst], reference)
        else:
            names: tuple[TokenColumn, ...] = ("old_logps", "advantages", "importance", "old_values", "returns")
            columns = {name: arrays[name].astype(np.float32) for name in names if name in arrays}
            texts = Rollouts(prompts, groups, columns)
        return cls(number, texts, records, schedule.steps(number, len(records)), arrays)


def first_of_each(data: Prompts, most: int) -> Indices:
    """The first `most` records of `data`; of several sources so many of each as it has of all."""
    if len(data) <= most or not isinstance(data, JoinedPairs):
        return np.arange(min(len(data), most))
    spans = list(data.spans.values())
    counts = apportioned([end - start for start, end in spans], most)
    return np.concatenate([np.arange(start, start + count) for (start, _), count in zip(spans, counts, strict=True)])


def learned_scores(scores: Sequence[float | None], cut: Sequence[bool], rollouts: RolloutsConfig) -> Floats:
    """`(samples,)`: the scores that are learned from, held within `clip_scores`, less `cut_penalty` where a response
    was cut; NaN where there is none."""
    found = np.array([np.nan if score is None else score for score in scores], np.float64)
    if rollouts.clip_scores is not None:
        found = found.clip(-rollouts.clip_scores, rollouts.clip_scores)
    return found - rollouts.cut_penalty * np.asarray(cut, np.float64)


def groups_of(written: Written, scores: Floats) -> dict[int, list[int]]:
    """By prompt of the round the places of its samples that have a score."""
    groups: dict[int, list[int]] = {}
    for place, sample in enumerate(written.samples):
        if np.isfinite(scores[place]):
            groups.setdefault(sample.prompt, []).append(place)
    return groups


def differing(groups: dict[int, list[int]], written: Written, scores: Floats) -> dict[int, list[int]]:
    """Those of `groups` whose best and worst are two; one response may be scored apart from itself by rounding."""

    def differ(places: list[int]) -> bool:
        best, worst = (places[find(scores[places])] for find in (np.argmax, np.argmin))
        return bool(scores[best] > scores[worst]) and written.samples[best].ids != written.samples[worst].ids

    return {prompt: places for prompt, places in groups.items() if differ(places)}


def ids_of(sample: Sample) -> Ids:
    """`(tokens,)`: what was drawn."""
    return np.asarray(sample.ids, np.int32)
