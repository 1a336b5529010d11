"""Rewards of responses: each prompt once, with all responses to it, through the trainer's own packed forward."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.cluster.gpu_memory import limit_memory, take_memory
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config.evaluation import ScoringConfig
from orpo_ray.data import toyworld
from orpo_ray.data.formats import Tools, Turns
from orpo_ray.data.prompts import Prompt, readable
from orpo_ray.data.records import BadRecord
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import require_batch_invariance
from orpo_ray.inference.listening import Listener, listener
from orpo_ray.inference.models import TRUTH, EvaluatedModel
from orpo_ray.inference.node_files import on_this_node
from orpo_ray.inference.speaking import Answer, Completion, Speaker
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.reward import ForeignRewardModel, PackedRewardModel, load_foreign_reward_model, load_reward_model
from orpo_ray.modeling.scorer import packed_scores
from orpo_ray.telemetry.logs import log, log_as

Rows = list[list[int]]
"""Token ids of a prompt and of each of its completions."""

NOT_FINITE = "not finite"
"""What a reward that is infinite or not a number is counted as."""

_PARITY = {"float32": 1e-3, "bfloat16": 5e-2}  # between two runtimes' rewards of the same text
_PARITY_TEXTS = 8
_MORE = 4.0
"""The same, in what parts two plain ways of a network."""


class Judged(NamedTuple):
    """A prompt with all that is to be judged: the data set's own completions, then the policies' answers."""

    prompt: Prompt
    answers: tuple[Answer, ...]


class Judge(Protocol):
    """One reward model."""

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        """Of each prompt the rewards of its completions and answers; None where the text is too long for it.

        They may be infinite or NaN: a network's own, which whoever counts them tells apart from None.
        """


class _NetworkJudge(ABC):
    """A reward model that reads tokens; its first rewards are held against those of another way before use."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None) -> None:
        self.model = model
        self.speaker = listener(model, chat_template)
        self._checked = False

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        if not block:  # nobody has answered anything of it
            return []
        fitting, rows = fitted([self._rows(judged) for judged in block], self.model.context)
        rewards = _spread(fitting, self.scores(rows))
        if not self._checked:
            self._require_finite(rewards)
        self._checked = self._checked or self._check(block, rewards)
        return rewards

    def _rows(self, judged: Judged) -> Rows:
        """No prompt where there is nothing to judge. Raises `UserError`, naming the record, where the model cannot be
        asked this."""
        if not (judged.answers or judged.prompt.as_found.completions):
            return [[]]
        try:
            return judged_rows(self.speaker, judged)
        except (BadRecord, UserError) as error:
            said = self.speaker.in_its_words(error)
            raise UserError(f"{judged.prompt.location}: {said}") from None

    def _require_finite(self, rewards: Sequence[Sequence[float | None]]) -> None:
        """Some of the first rewards: all the others would be worth as little, after hours. Raises `UserError`."""
        given = [value for values in rewards for value in values if value is not None]
        if given and not np.isfinite(given).any():
            raise UserError(
                f"{self.model.key}: none of its first {len(given)} rewards is finite (they begin with "
                f"{given[0]}): its weights hold such numbers, or it cannot be computed in {self.model.dtype}"
            )

    @abstractmethod
    def scores(self, rows: Sequence[Rows]) -> list[list[float]]:
        """Of each row those of its completions."""

    @abstractmethod
    def _check(self, block: Sequence[Judged], rewards: Sequence[Sequence[float | None]]) -> bool:
        """Whether there was anything to compare. Raises `UserError` where the other way gives others."""


class PackedJudge(_NetworkJudge):
    """A reward model behind shared-prefix packing; one from elsewhere is held against Hugging Face's own forward."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None, budget: int, device: torch.device) -> None:
        super().__init__(model, chat_template)
        self._budget = budget
        self._network: PackedRewardModel
        if model.trained_here:
            self._network = load_reward_model(model.settings, seed=0, device=device).eval()
        else:
            self._network = load_foreign_reward_model(model.settings, device=device)

    def scores(self, rows: Sequence[Rows]) -> list[list[float]]:
        parted = [_parted(row) for row in rows]
        if any(not ids for texts in parted for _, *endings in texts for ids in endings):
            raise UserError(f"{self.model.key}: a text of one token leaves nothing to compare")
        given = iter(packed_scores(self._network, [one for row in parted for one in row], self._budget))
        return [[score for _ in row for score in next(given)] for row in parted]

    def _check(self, block: Sequence[Judged], rewards: Sequence[Sequence[float | None]]) -> bool:
        network, speaker = self._network, self.speaker
        if not (isinstance(network, ForeignRewardModel) and isinstance(speaker, Listener)):
            return True  # what was trained here is packed as it was in training
        found = (
            (ids, value)
            for judged, values in zip(block, rewards, strict=True)
            for ids, value in zip(speaker.texts(*_asked(speaker, judged)), values, strict=True)
            if value is not None and (self.model.context is None or len(ids) <= self.model.context)
        )
        compared = list(islice(found, _PARITY_TEXTS))
        packed = np.array([value for _, value in compared])
        plain = np.array([network.plain(ids) for ids, _ in compared])
        apart = _apart(plain, packed)
        largest = float(np.abs(plain[np.isfinite(plain)]).max(initial=0))
        rounding = _PARITY[self.model.dtype] * max(1.0, largest)
        if apart > rounding:  # how much is it that two plain ways of the same network differ by?
            other = np.array([network.plain(ids, "eager") for ids, _ in compared])
            rounding = max(rounding, _MORE * _apart(plain, other))
        if not apart <= rounding:
            raise UserError(
                f"{self.model.key}: its rewards are up to {apart:.2g} away from those of Hugging "
                f"Face's own forward of the same texts, of which rounding explains {rounding:.2g}; it cannot be used"
            )
        return bool(compared)


def pooling_arguments(model: EvaluatedModel, gpu_memory: float | None) -> dict[str, Any]:
    """What vLLM's `LLM` is given for a reward model. `gpu_memory`: share of its GPU's memory; None on a CPU."""
    where = {"enforce_eager": True} if gpu_memory is None else {"gpu_memory_utilization": gpu_memory}
    return {
        "model": str(model.folder), "runner": "pooling", "dtype": model.dtype, "max_model_len": model.context,
        "trust_remote_code": model.trust_remote_code, "load_format": "safetensors", **where,
    }  # fmt: skip


class VllmJudge(_NetworkJudge):
    """A reward model in vLLM's pooling runner; it is held against the packed forward."""

    def __init__(
        self,
        model: EvaluatedModel,
        chat_template: str | None,
        budget: int,
        device: torch.device,
        gpu_memory: float | None = None,
    ) -> None:
        """`gpu_memory`: see `pooling_arguments`; the packed forward takes of the rest."""
        from vllm import LLM

        require_batch_invariance()
        super().__init__(model, chat_template)
        self._packed = partial(PackedJudge, model, chat_template, budget, device)
        self._engine: Any = LLM(**pooling_arguments(model, gpu_memory))

    def scores(self, rows: Sequence[Rows]) -> list[list[float]]:
        from vllm import PoolingParams

        texts = [{"prompt_token_ids": prompt + ending} for prompt, *endings in rows for ending in endings]
        # Without `use_activation=False` it would answer sigmoid(reward): ties where rewards are large.
        outputs = self._engine.encode(
            texts, pooling_task="classify", pooling_params=PoolingParams(use_activation=False), use_tqdm=False
        )
        values = iter([float(output.outputs.data.flatten()[0]) for output in outputs])
        return [[next(values) for _ in endings] for _, *endings in rows]

    def _check(self, block: Sequence[Judged], rewards: Sequence[Sequence[float | None]]) -> bool:
        some = [i for i, values in enumerate(rewards) if any(value is not None for value in values)][:_PARITY_TEXTS]
        ours = self._packed().rewards([block[i] for i in some])
        pairs = [
            (mine, theirs)
            for i, values in zip(some, ours, strict=True)
            for mine, theirs in zip(values, rewards[i], strict=True) if mine is not None and theirs is not None
        ]  # fmt: skip
        apart = _apart(*np.array(pairs).reshape(-1, 2).T)
        if not apart <= _PARITY[self.model.dtype]:
            raise UserError(
                f"{self.model.key}: vLLM's rewards are up to {apart:.2g} away from the packed "
                "forward's, so it computes another model; set scoring.engine=packed"
            )
        return bool(pairs)


class TruthJudge:
    """The embedded world's own scorer: how many of three qualities an answer has."""

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        return [
            [
                _truth(prompt, text)
                for text in [*map(readable, prompt.as_found.completions), *(answer.text for answer in answers)]
            ]
            for prompt, answers in block
        ]


def _truth(prompt: Prompt, text: str) -> float:
    try:
        return float(toyworld.true_score(readable(prompt.as_found.prompt), text))
    except ValueError as error:
        raise UserError(f"{prompt.location}: the reward model toy knows the embedded world alone: {error}") from None


def require_known(reward_models: Mapping[str, EvaluatedModel | None], prompts: Sequence[Prompt]) -> None:
    """Raises `UserError`, naming the record, where the embedded world's truth is to judge what is not of that world."""
    if None not in reward_models.values():
        return
    for prompt in prompts:
        try:
            toyworld.parse_prompt(readable(prompt.as_found.prompt))
        except ValueError as error:
            told = f"the reward model {TRUTH} knows the embedded world alone: {error}"
            raise UserError(f"{prompt.location}: {told}") from None


class GpuShare(NamedTuple):
    """What a scorer may take of its GPU's memory."""

    beside: float
    """While an engine stands there."""
    alone: float
    """Where none does; the same, where none ever did."""

    def of_each(self, judges: int) -> float:
        """Of so many engines of vLLM's in one scorer: as much is left for the packed forward that one is held
        against."""
        return self.beside / (judges + 1)


class Scorer:
    """What a scoring actor holds: every reward model, and one policy at a time for its log-probs of the data."""

    def __init__(
        self,
        reward_models: dict[str, EvaluatedModel | None],
        chat_template: str | None,
        scoring: ScoringConfig,
        run: str = "",
        trial: str = "",
        share: GpuShare | None = None,
    ) -> None:
        """`reward_models`: by label; None stands for the embedded world's truth. `run`, and of a sweep `trial`, name
        its work in the log. `share`: None on a CPU, or where nobody says."""
        if run:
            log_as(run=run, trial=trial, role="scorer")
        self._chat_template = chat_template
        self._budget = scoring.tokens_per_microbatch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
            use_assigned_cpus()
        self._policy: tuple[str, Speaker, nn.Module] | None = None
        self._share = share if self.device.type == "cuda" else None
        judge: Callable[..., Judge] = PackedJudge
        if scoring.engine == "vllm":
            judge = partial(VllmJudge, gpu_memory=self._share and self._share.of_each(_networks(reward_models)))
        if self._share is not None and self._share.beside < self._share.alone:
            # An engine of vLLM's takes its own at once.
            (limit_memory if scoring.engine == "vllm" else take_memory)(self._share.beside)
        self._judges: dict[str, Judge] = {
            label: TruthJudge()
            if model is None
            else judge(on_this_node(model), chat_template, self._budget, self.device)
            for label, model in reward_models.items()
        }
        log("scorer started", reward_models=list(reward_models), device=str(self.device))

    def rewards(self, labels: Sequence[str], block: Sequence[Judged]) -> dict[str, list[list[float | None]]]:
        """By label of a reward model; see `Judge`."""
        return {label: self._judges[label].rewards(block) for label in labels}

    def log_probs(self, policy: EvaluatedModel, prompts: Sequence[Prompt]) -> list[list[tuple[float, int]] | None]:
        """Summed log-probs (nats) and tokens of the data set's chosen and rejected under a policy.

        None where the text is too long for it.
        """
        if self._policy is None or self._policy[0] != policy.label:
            self._policy = None  # one at a time in memory
            if self._share is not None:  # it is asked when engines have gone
                limit_memory(self._share.alone)
            policy = on_this_node(policy)
            network = load_policy(policy.settings, seed=0, device=self.device).eval()
            self._policy = (policy.label, Speaker(policy, self._chat_template), network)
        _, speaker, model = self._policy
        rows = [judged_rows(speaker, Judged(prompt, ())) for prompt in prompts]
        fitting, kept = fitted(rows, policy.context)
        sums = _spread(fitting, packed_scores(model, kept, self._budget))
        return [
            None if any(value is None for value in values)
            else [(value, len(ending)) for value, ending in zip(values, row[1:], strict=True) if value is not None]
            for row, values in zip(rows, sums, strict=True)
        ]  # fmt: skip


def _networks(reward_models: Mapping[str, EvaluatedModel | None]) -> int:
    return sum(model is not None for model in reward_models.values())


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest difference; infinite where but one of two is finite, and none where neither is."""
    finite = np.isfinite(a), np.isfinite(b)
    if (finite[0] != finite[1]).any():
        return float("inf")
    return float(np.abs(a - b, where=finite[0], out=np.zeros_like(a)).max(initial=0))


def not_finite(rewards: Mapping[str, Sequence[Sequence[float | None]]]) -> dict[str, int]:
    """How many of these rewards are infinite or not a number, by reward model; those of which none is are left out."""
    counts = {
        label: sum(value is not None and not math.isfinite(value) for row in values for value in row)
        for label, values in rewards.items()
    }
    return {label: count for label, count in counts.items() if count}


def judged_rows(speaker: Speaker, judged: Judged) -> Rows:
    """Token ids of the prompt, of the data set's completions and of the answers."""
    return speaker.rows(*_asked(speaker, judged))


def _asked(speaker: Speaker, judged: Judged) -> tuple[Turns, list[Completion], Tools | None]:
    """The question, the data set's completions and the answers, in the form that a model takes them in."""
    prompt, answers = judged
    question = speaker.question(prompt)
    completions = [Completion(turns, cut=False) for turns in question.completions]
    completions += [speaker.completion(prompt, answer) for answer in answers]
    return question.prompt, completions, question.tools


def _parted(row: Rows) -> list[Rows]:
    """A row as packing takes it, whose prompt and completions are not empty, or a row for each of its completions.

    A completion of no tokens, a cut answer without text, is scored where the prompt ends: each then has the prompt's
    last token as its first. Where completions begin in nothing alike, each is computed by itself.
    """
    prompt, *endings = row
    if not all(endings):
        prompt, endings = prompt[:-1], [prompt[-1:] + ids for ids in endings]
    return [[prompt, *endings]] if prompt else [[ids[:1], ids[1:]] for ids in endings]


def fitted(rows: Sequence[Rows], context: int | None) -> tuple[list[list[bool]], list[Rows]]:
    """Of each row which completions fit the context with their prompt, and the rows of those alone."""
    fitting = [
        [context is None or len(prompt) + len(ending) <= context for ending in endings] for prompt, *endings in rows
    ]
    kept = [
        [prompt, *(ending for ending, fits in zip(endings, fit, strict=True) if fits)]
        for (prompt, *endings), fit in zip(rows, fitting, strict=True)
    ]
    return fitting, kept


def _spread(fitting: Sequence[Sequence[bool]], scores: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Scores of the completions that fit, put back among those that do not."""
    spread: list[list[float | None]] = []
    for fit, values in zip(fitting, scores, strict=True):
        given = iter(values)
        spread.append([next(given) if fits else None for fits in fit])
    return spread
