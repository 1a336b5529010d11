"""Rewards of responses: each prompt once, with all responses to it, through the trainer's own packed forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.cluster.threads import use_assigned_cpus
from orpo_ray.config.evaluation import ScoringConfig
from orpo_ray.data import toyworld
from orpo_ray.data.prompts import Prompt, readable
from orpo_ray.errors import UserError
from orpo_ray.evaluation.models import Answer, Completion, EvaluatedModel, Speaker
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import packed_scores
from orpo_ray.telemetry.logs import log, log_as

Rows = list[list[int]]
"""Token ids of a prompt and of each of its completions."""

_PARITY = {"float32": 1e-3, "bfloat16": 5e-2}  # between two runtimes' rewards of the same text
_PARITY_TEXTS = 8


class Judged(NamedTuple):
    """A prompt with all that is to be judged: the data set's own completions, then the policies' answers."""

    prompt: Prompt
    answers: tuple[Answer, ...]


class Judge(Protocol):
    """One reward model."""

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        """Of each prompt the rewards of its completions and answers; None where the text is too long for it."""


class PackedJudge:
    """A reward model behind shared-prefix packing."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None, budget: int, device: torch.device) -> None:
        self.speaker = Speaker(model, chat_template)
        self._context = model.context
        self._budget = budget
        self._model = load_reward_model(model.settings, seed=0, device=device).eval()

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        fitting, rows = fitted([judged_rows(self.speaker, judged) for judged in block], self._context)
        return _spread(fitting, packed_scores(self._model, rows, self._budget))


class VllmJudge:
    """A reward model in vLLM's pooling runner; its rewards are compared with the packed ones before it is used."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None, budget: int, device: torch.device) -> None:
        from vllm import LLM

        self.speaker = Speaker(model, chat_template)
        self._model, self._budget, self._device = model, budget, device
        self._checked = False
        self._engine: Any = LLM(
            model=str(model.folder), runner="pooling", dtype=model.dtype, enforce_eager=device.type == "cpu",
            max_model_len=model.context, trust_remote_code=model.trust_remote_code, load_format="safetensors",
        )  # fmt: skip

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        fitting, rows = fitted([judged_rows(self.speaker, judged) for judged in block], self._model.context)
        if not self._checked:
            self._check(rows)
            self._checked = True
        return _spread(fitting, self._scores(rows))

    def _scores(self, rows: Sequence[Rows]) -> list[list[float]]:
        from vllm import PoolingParams

        texts = [{"prompt_token_ids": prompt + ending} for prompt, *endings in rows for ending in endings]
        # Without `use_activation=False` it would answer sigmoid(reward): ties where rewards are large.
        outputs = self._engine.encode(
            texts, pooling_task="classify", pooling_params=PoolingParams(use_activation=False), use_tqdm=False
        )
        values = iter([float(output.outputs.data.flatten()[0]) for output in outputs])
        return [[next(values) for _ in endings] for _, *endings in rows]

    def _check(self, rows: Sequence[Rows]) -> None:
        """Raises `UserError` where vLLM and the packed forward disagree on the first texts."""
        some = [row for row in rows if len(row) > 1][:_PARITY_TEXTS]
        model = load_reward_model(self._model.settings, seed=0, device=self._device).eval()
        ours = np.array([value for values in packed_scores(model, some, self._budget) for value in values])
        theirs = np.array([value for values in self._scores(some) for value in values])
        apart = float(np.abs(ours - theirs).max(initial=0))
        if apart > _PARITY[self._model.dtype]:
            raise UserError(
                f"reward_models.{self._model.label}: vLLM's rewards are up to {apart:.2g} away from the packed "
                "forward's, so it computes another model; set scoring.engine=packed"
            )


class TruthJudge:
    """The embedded world's own scorer: how many of three qualities an answer has."""

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        return [
            [
                float(toyworld.true_score(readable(prompt.as_found.prompt), text))
                for text in [*map(readable, prompt.as_found.completions), *(answer.text for answer in answers)]
            ]
            for prompt, answers in block
        ]


class Scorer:
    """What a scoring actor holds: every reward model, and one policy at a time for its log-probs of the data."""

    def __init__(
        self,
        reward_models: dict[str, EvaluatedModel | None],
        chat_template: str | None,
        scoring: ScoringConfig,
        run: str = "",
    ) -> None:
        """`reward_models`: by label; None stands for the embedded world's truth. `run` names its work in the log."""
        if run:
            log_as(run=run, role="scorer")
        self._chat_template = chat_template
        self._budget = scoring.tokens_per_microbatch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            keep_freed_memory()
            use_assigned_cpus()
        self._policy: tuple[str, Speaker, nn.Module] | None = None
        judge = VllmJudge if scoring.engine == "vllm" else PackedJudge
        self._judges: dict[str, Judge] = {
            label: TruthJudge() if model is None else judge(model, chat_template, self._budget, self._device)
            for label, model in reward_models.items()
        }
        log("scorer started", reward_models=list(reward_models), device=str(self._device))

    def rewards(self, labels: Sequence[str], block: Sequence[Judged]) -> dict[str, list[list[float | None]]]:
        """By label of a reward model; see `Judge`."""
        return {label: self._judges[label].rewards(block) for label in labels}

    def log_probs(self, policy: EvaluatedModel, prompts: Sequence[Prompt]) -> list[list[tuple[float, int]] | None]:
        """Summed log-probs (nats) and tokens of the data set's chosen and rejected under a policy.

        None where the text is too long for it.
        """
        if self._policy is None or self._policy[0] != policy.label:
            self._policy = None  # one at a time in memory
            network = load_policy(policy.settings, seed=0, device=self._device).eval()
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


def judged_rows(speaker: Speaker, judged: Judged) -> Rows:
    """Token ids of the prompt, of the data set's completions and of the answers."""
    prompt, answers = judged
    question = speaker.question(prompt)
    completions = [Completion(turns, cut=False) for turns in question.completions]
    completions += [speaker.completion(prompt, answer) for answer in answers]
    return speaker.rows(question.prompt, completions, question.tools)


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
