"""How much data a stage reads: counted where it is here, else as published, and said to be so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orpo_ray.config import EvaluationConfig, ModelConfig, TrainConfig
from orpo_ray.config.data import BUILT_IN, SourceConfig
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.config.paths import expanded
from orpo_ray.costs.step import Lengths, Load
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.paper.networks import Networks

_RECORDS = {
    "Anthropic/hh-rlhf": {"train": 160_800, "test": 8_552},
    "HuggingFaceH4/ultrafeedback_binarized": {"train_prefs": 61_135, "test_prefs": 2_000},
    "argilla/ultrafeedback-binarized-preferences-cleaned": {"train": 60_917},
}
"""Records of each split as its page on the Hub says; what a filter drops of them is not known."""
_HH, _ULTRAFEEDBACK = (126, 59, 59), (245, 250, 250)
"""Mean tokens of prompt, chosen and rejected. Of each pair there are 245 and 745 (docs/scaling.md: HH-RLHF and
UltraFeedback, cut to 1,024 and 2,048 tokens, by a tokenizer of GPT-2's kind); how they are parted is ASSUMED."""
_LONGEST = 99  # percent: what of responses counts as the longest of those that are written together


class Pairs(NamedTuple):
    """Of a training run."""

    train: int
    held_out: int
    lengths: Lengths
    """Of pairs, or of the mean one; of prompts alone `(prompts, 1)`."""
    note: str
    """Where these are from; empty: they were counted."""

    def load(self, *, best_alone: bool, score_prompts: bool) -> Load:
        """Of the mean pair."""
        lengths = self.lengths[:, :2] if best_alone else self.lengths
        return Load.of(lengths, score_prompts=score_prompts).times(1 / len(lengths))


class Prompts(NamedTuple):
    """Of an evaluation, with the responses of the data to them; lengths are means."""

    number: int
    prompt: float
    response: float
    longest: float
    note: str


@dataclass(frozen=True)
class _Key:
    """What decides a count."""

    data: str
    reading: str
    longest: int | None
    seed: int
    tokenizer: str


class Amounts:
    """Counts each data set once; through the cache of tokenised data, where a run would leave it too."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._pairs: dict[_Key, Pairs] = {}
        self._prompts: dict[str, tuple[int, str]] = {}

    def pairs(self, run: TrainConfig) -> Pairs | None:
        """Raises `UserError` as the run would, of data that are here. None: nobody says how many there are."""
        root, section = self._networks.root(run.model.name_or_path)
        own = run.model.tokenizer or (section.tokenizer if section is not None else None) or root
        listed = [*run.data.train_sources, *run.data.eval_sources]
        if all(is_here(one.source) for one in listed) and is_here(own, model=True):
            key = _Key(
                run.data.model_dump_json(), run.reading, None if run.rollouts is None else run.rollouts.max_tokens,
                run.seed if run.data.eval is None else 0, own,
            )  # fmt: skip
            if key not in self._pairs:
                self._pairs[key] = _counted(run, own)
            return self._pairs[key]
        return _published(run)

    def prompts(self, config: EvaluationConfig, of_runs: list[TrainConfig]) -> Prompts | None:
        """`of_runs`: those whose models it asks, by whose data the prompts' lengths are known."""
        counted = self._asked(config.prompts)
        if counted is None:
            return None
        read = next((pairs for run in of_runs if (pairs := self.pairs(run)) is not None), None)
        lengths = np.array([_mean_of(config.prompts.source)]) if read is None else read.lengths
        responses = lengths[:, 1:] if lengths.shape[1] > 1 else np.array([_HH[1:]])
        longest = min(config.sampling.max_tokens, float(np.percentile(responses, _LONGEST)))
        if len(lengths) == 1:
            longest = config.sampling.max_tokens  # a mean tells nothing of the longest
        response = min(float(responses.mean()), config.sampling.max_tokens)
        note = counted[1] or ("" if read is None else read.note)
        return Prompts(counted[0], float(lengths[:, 0].mean()), response, longest, note)

    def _asked(self, prompts: PromptsConfig) -> tuple[int, str] | None:
        """How many, and where the number is from."""
        if prompts.records is not None:
            return len(prompts.records), ""
        if is_here(prompts.source):
            key = prompts.model_dump_json()
            if key not in self._prompts:
                self._prompts[key] = len(read_prompts(prompts, with_messages=False)[0]), ""
            return self._prompts[key]
        found = _RECORDS.get(prompts.source.partition("@")[0], {}).get(prompts.split)
        if found is None:
            return None if prompts.limit is None else (prompts.limit, "")
        return min(found, prompts.limit or found), _said(prompts.source)


def is_here(name: str, *, model: bool = False) -> bool:
    """Whether a source of data, or a model, is read without the network."""
    if name in (("toy",) if model else BUILT_IN):
        return True
    return "://" not in name and os.path.exists(expanded(name))


def _counted(run: TrainConfig, tokenizer: str) -> Pairs:
    prepared = prepare(run, load_tokenizer(ModelConfig(name_or_path=tokenizer)))
    return Pairs(len(prepared.train), len(prepared.eval), prepared.train.lengths(), "")


def _published(run: TrainConfig) -> Pairs | None:
    train = [_records(one) for one in run.data.train_sources]
    evaluated = [_records(one) for one in run.data.eval_sources]
    if any(count is None for count in (*train, *evaluated)):
        return None
    pairs, held_out = sum(filter(None, train)), sum(filter(None, evaluated))
    if not evaluated:
        held_out = round(pairs * run.data.eval_fraction)
        pairs -= held_out
    first = run.data.train_sources[0].source
    lengths = np.minimum(np.array([_mean_of(first)]), run.data.max_length)
    return Pairs(pairs, held_out, lengths, _said(first))


def _records(source: SourceConfig) -> int | None:
    found = _RECORDS.get(source.source.partition("@")[0], {}).get(str(source.split))
    return source.limit if found is None else min(found, source.limit or found)


def _said(source: str) -> str:
    of = "UltraFeedback" if _mean_of(source) == _ULTRAFEEDBACK else "HH-RLHF"
    return f"{source}: its published number of records, none dropped; {of}'s mean lengths (docs/scaling.md)"


def _mean_of(source: str) -> tuple[int, int, int]:
    return _ULTRAFEEDBACK if "ultrafeedback" in source.lower() else _HH
