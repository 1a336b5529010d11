"""What scores the responses of the policy in training: reward models, functions, or the embedded world's truth.

Text goes over, ids do not: each reward model is asked by its own tokenizer and template, as in its training, or as
Hugging Face asks one from elsewhere (see `listening`). Left out on purpose: clipping and the penalty of cut responses,
which are not the reward's but the objective's, and any scaling or whitening of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from orpo_ray.cluster.turns import let_go
from orpo_ray.config.evaluation import ScoringConfig
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.data.prompts import Prompt
from orpo_ray.errors import UserError
from orpo_ray.inference.listening import listener
from orpo_ray.inference.models import TRUTH, EvaluatedModel, find_reward_model
from orpo_ray.inference.reward_functions import FunctionJudge, RewardFunction, find_function, names_function
from orpo_ray.inference.scoring import NOT_FINITE, GpuShare, Judge, Judged, Scorer, require_known
from orpo_ray.inference.speaking import Answer, Speaker, prompt_ids

SECTION = "rollouts.rewards"
TOO_LONG = "too long"
_LARGEST = torch.finfo(torch.float32).max
"""A reward past it is not finite where it is trained on, and its square is not in any mean."""


@dataclass(frozen=True)
class RewardSource:
    """One of `rollouts.rewards`, found and checked on the driver's host."""

    label: str
    weight: float
    """0: it is computed and told, and nothing is learned from it."""
    judge: EvaluatedModel | RewardFunction | None
    """None: the embedded world's truth."""

    @property
    def digest(self) -> str:
        """Of what decides its rewards: a run that goes on has to have the same."""
        if isinstance(self.judge, EvaluatedModel):
            return f"{self.judge.digest} {self.judge.dtype}"
        return TRUTH if self.judge is None else f"{self.judge.digest} {self.judge.function}"


class Scored(NamedTuple):
    """What a response was given."""

    score: float | None
    """The weighted sum of its rewards; None where one that has a weight is missing, see `why`."""
    rewards: dict[str, float | None]
    """By label of a source; None where the text is too long for it, or what it gave is not finite."""
    why: Literal["", "too long", "not finite"] = ""


def find_rewards(config: RolloutsConfig, *, trust_remote_code: bool = False) -> list[RewardSource]:
    """Every source of `config.rewards`, in its order.

    Raises `UserError`, naming the key, for a reward model that is none (see `find_reward_model`), for a function that
    is not there or cannot be called, and for a path that is neither.
    """
    sources = []
    for label, asked in config.rewards.items():
        key, path = f"{SECTION}.{label}", asked.path
        judge: EvaluatedModel | RewardFunction | None = None
        if names_function(path):
            judge = find_function(key, path)
        elif path != TRUTH:
            try:
                judge = find_reward_model(label, path, "auto", section=SECTION, trust_remote_code=trust_remote_code)
            except UserError as error:
                hint = f"; a function is FILE.py:FUNCTION, the embedded world's truth {TRUTH}"
                raise UserError(f"{error}{hint if 'no such folder' in str(error) else ''}") from None
        sources.append(RewardSource(label, asked.weight, judge))
    if not any(source.weight for source in sources):
        raise UserError(f"{SECTION}: every weight is 0, so there is nothing to learn from")
    return sources


def listeners(sources: Iterable[RewardSource]) -> dict[str, Speaker]:
    """How each reward model among `sources` is asked, by label."""
    return {each.label: listener(each.judge, None) for each in sources if isinstance(each.judge, EvaluatedModel)}


def look_at(sources: Sequence[RewardSource], prompts: Sequence[Prompt]) -> list[str]:
    """What tokenizers and templates of the reward models do to `prompts` that a person may not expect, a line each.

    Raises `UserError`, naming the record, where a source cannot be asked one of them.
    """
    known: dict[str, EvaluatedModel | None] = {each.label: None for each in sources if each.judge is None}
    require_known(known, prompts)
    remarks = []
    for label, speaker in listeners(sources).items():
        prompt_ids(speaker, [prompt.alone for prompt in prompts])
        remarks += [f"{SECTION}.{label}: {remark}" for remark in speaker.remarks]
    return remarks


class Rewards:
    """What a scoring actor holds, or the process that trains: every source, ready to score."""

    def __init__(
        self,
        sources: Sequence[RewardSource],
        budget: int = ScoringConfig().tokens_per_microbatch,
        run: str = "",
        trial: str = "",
        share: GpuShare | None = None,
    ) -> None:
        """`budget`: packed tokens at once; `run`, and of a sweep `trial`, name its work in the log; `share`: of the
        GPU that it shares with an engine. Raises `UserError`, naming the host, where a source is not there, or is not
        what it was on the driver's."""
        self._weights = {source.label: source.weight for source in sources}
        models = {each.label: each.judge for each in sources if not isinstance(each.judge, RewardFunction)}
        self._scorer = Scorer(models, None, ScoringConfig(tokens_per_microbatch=budget), run, trial, share)
        self._models = list(models)
        self._functions: dict[str, Judge] = {
            each.label: FunctionJudge(each.judge) for each in sources if isinstance(each.judge, RewardFunction)
        }

    def score(self, block: Sequence[tuple[Prompt, Sequence[Answer]]]) -> list[list[Scored]]:
        """Of each prompt its answers, in their order. The same block gives the same bits, whenever it is asked.

        A prompt is computed once for all of its answers; completions of the data set's own are not looked at. Raises
        `UserError`, naming the source's key or the record, for what no number can stand for.
        """
        judged = [Judged(prompt.alone, tuple(answers)) for prompt, answers in block]
        given = self._scorer.rewards(self._models, judged)
        given |= {label: judge.rewards(judged) for label, judge in self._functions.items()}
        let_go(self._scorer.device)
        return [
            [
                _scored(self._weights, {label: given[label][place][answer] for label in self._weights})
                for answer in range(len(answers))
            ]
            for place, (_, answers) in enumerate(judged)
        ]


def reward_metrics(scored: Iterable[Scored]) -> dict[str, float]:
    """How many responses have no score, `not_finite` and `too_long`, and the mean `reward/LABEL` of each source over
    the responses that it gave one."""
    counts = {NOT_FINITE: 0, TOO_LONG: 0}
    given: dict[str, list[float]] = {}
    for each in scored:
        if each.why:
            counts[each.why] += 1
        for label, reward in each.rewards.items():
            given.setdefault(label, []).extend([] if reward is None else [reward])
    means = {f"reward/{label}": math.fsum(of) / len(of) for label, of in given.items() if of}
    return {why.replace(" ", "_"): float(count) for why, count in counts.items()} | means


def _scored(weights: Mapping[str, float], given: Mapping[str, float | None]) -> Scored:
    """A source of weight 0 does not decide whether there is a score. What is not finite is told before what is too
    long: it is a fault."""
    learned = [(weight, given[label]) for label, weight in weights.items() if weight]
    parts = [weight * reward for weight, reward in learned if reward is not None]
    score = sum(parts)
    rewards = {label: reward if reward is None or abs(reward) <= _LARGEST else None for label, reward in given.items()}
    if not abs(score) <= _LARGEST:
        return Scored(None, rewards, "not finite")
    return Scored(score, rewards) if len(parts) == len(learned) else Scored(None, rewards, "too long")
