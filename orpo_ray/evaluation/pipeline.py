"""The work of an evaluation on a Ray cluster: engines generate, scorers judge meanwhile, pieces reach the disk.

The driver hands out requests and writes every piece, so actors need not see the evaluation's folder. An engine
always has more requests than it can work on at once; those that a lost actor had are asked for again, with the same
seeds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.evaluation.generation import ENVIRONMENT, EngineOptions, Generator, Request, Response
from orpo_ray.evaluation.models import Answer
from orpo_ray.evaluation.plan import EvaluationPlan
from orpo_ray.evaluation.scoring import Judged, Scorer
from orpo_ray.telemetry import metrics

AT_WORK = 512
"""Requests that an engine has at a time: twice what vLLM computes at once by default."""
TOO_LONG = "too long"
_ANYWHERE = "DEFAULT"
"""Not within the resources of the trial of a sweep that evaluates its checkpoints, which hold none."""

Answers = dict[int, list[tuple[str, int, Answer]]]
"""By prompt: policy, round and answer."""


class Progress(Protocol):
    """Where the counts of what is done go."""

    def __call__(self, *, responses: int = 0, judged: int = 0, pairs: int = 0) -> None: ...


class _Responses:
    """What is left to generate, by policy, and the blocks that are not yet whole."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        self.todo: dict[str, deque[Request]] = {label: deque() for label in plan.policies}
        self._open: dict[tuple[str, int], list[Response]] = {}
        self._missing: dict[tuple[str, int], int] = {}
        self._block_of = {prompt: index for index, block in enumerate(plan.blocks) for prompt in block}
        for label, policy in plan.policies.items():
            for block in range(len(plan.blocks)):
                if policy.responses.has(block):
                    continue
                requests = plan.requests(label, block)
                self.todo[label].extend(requests)
                self._open[label, block] = []
                self._missing[label, block] = len(requests)
                if not requests:
                    self._write(label, block)

    @property
    def finished(self) -> bool:
        return not self._open

    def whole(self, block: int) -> bool:
        """Whether every policy has answered it."""
        return all((label, block) not in self._open for label in self.todo)

    def take(self, label: str, count: int) -> list[Request]:
        todo = self.todo[label]
        return [todo.popleft() for _ in range(min(count, len(todo)))]

    def receive(self, label: str, responses: list[Response]) -> None:
        for response in responses:
            block = self._block_of[response.prompt]
            self._open[label, block].append(response)
            self._missing[label, block] -= 1
            if not self._missing[label, block]:
                self._write(label, block)

    def _write(self, label: str, block: int) -> None:
        """The whole block, unanswered prompts included, in the order of prompts and rounds."""
        policy = self._plan.policies[label]
        rows = [response._asdict() for response in self._open.pop((label, block))]
        rows += [
            {"prompt": prompt, "round": round, "text": None, "tokens": None, "ended": TOO_LONG}
            for prompt in self._plan.blocks[block] if not policy.fits[prompt]
            for round in range(self._plan.config.sampling.rounds)
        ]  # fmt: skip
        policy.responses.write(block, sorted(rows, key=lambda row: (row["prompt"], row["round"])))


class _Judgements:
    """What is left to judge: blocks whose responses are all there, and the policies' log-probs of the data."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        unjudged = {block: self._unjudged(block) for block in range(len(plan.blocks))}
        self._blocks = {block: labels for block, labels in unjudged.items() if labels}
        self._answered: dict[int, Answers] = {}
        """Of the blocks that are being judged."""
        self._pairs = deque(
            (label, block)
            for label, policy in plan.policies.items() if policy.log_probs is not None
            for block in range(len(plan.blocks)) if not policy.log_probs.has(block)
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return not self._blocks and not self._pairs

    def next(self, responses: _Responses, *, log_probs: bool) -> tuple[str, int] | None:
        """A block to judge (`("", block)`), or with `log_probs` a policy and a block of its own, or nothing yet."""
        for block in self._blocks:
            if responses.whole(block):
                return "", block
        return self._pairs.popleft() if self._pairs and log_probs else None

    def begin(self, scorer: Any, task: tuple[str, int]) -> Any:
        label, block = task
        prompts = self._plan.blocks[block]
        if label:
            model = self._plan.policies[label].model
            return scorer.log_probs.remote(model, [self._plan.prompts[prompt] for prompt in prompts])
        answers = self._answered[block] = self._answers(block)
        judged = [
            Judged(self._plan.prompts[prompt], tuple(answer for _, _, answer in answers[prompt])) for prompt in prompts
        ]
        return scorer.rewards.remote(self._blocks.pop(block), judged)

    def give_back(self, task: tuple[str, int]) -> None:
        label, block = task
        if label:
            self._pairs.append(task)
        else:
            del self._answered[block]
            self._blocks[block] = self._unjudged(block)

    def receive(self, task: tuple[str, int], result: Any) -> None:
        label, block = task
        if label:
            self._write_log_probs(label, block, result)
            return
        answers = self._answered.pop(block)
        for name, rewards in result.items():
            self._write_rewards(name, block, answers, rewards)

    def _unjudged(self, block: int) -> list[str]:
        return [label for label, judge in self._plan.judges.items() if not judge.rewards.has(block)]

    def _answers(self, block: int) -> Answers:
        """Every response there is, in a fixed order."""
        answers: Answers = {prompt: [] for prompt in self._plan.blocks[block]}
        for label, policy in self._plan.policies.items():
            for row in policy.responses.read(block):
                if row["text"] is not None:
                    prompt = self._plan.prompts[row["prompt"]]
                    answer = policy.speaker.answer(prompt, row["text"], cut=row["ended"] == "length")
                    answers[row["prompt"]].append((label, row["round"], answer))
        return answers

    def _write_rewards(self, name: str, block: int, answers: Answers, rewards: list[list[float | None]]) -> None:
        rows = []
        for prompt, values in zip(self._plan.blocks[block], rewards, strict=True):
            own = [(label, 0) for label in DATA_LABELS[: len(self._plan.prompts[prompt].as_found.completions)]]
            who = own + [(label, round) for label, round, _ in answers[prompt]]
            rows += [
                {"prompt": prompt, "model": label, "round": round, "reward": value}
                for (label, round), value in zip(who, values, strict=True)
            ]
        self._plan.judges[name].rewards.write(block, rows)

    def _write_log_probs(self, label: str, block: int, sums: list[list[tuple[float, int]] | None]) -> None:
        pieces = self._plan.policies[label].log_probs
        assert pieces is not None
        rows = []
        for prompt, pair in zip(self._plan.blocks[block], sums, strict=True):
            row: dict[str, Any] = {"prompt": prompt}
            for name, (value, tokens) in zip(DATA_LABELS, pair or [], strict=False):
                row |= {name: value, f"{name}_tokens": tokens}
            rows.append(row)
        pieces.write(block, rows)


@dataclass
class _Slot:
    """A place for one actor, and the call that it works on."""

    actor: Any = None
    call: Any = None


@dataclass
class _EngineSlot(_Slot):
    label: str = ""
    """The policy that it has now; empty: none."""
    requests: dict[tuple[int, int], Request] = field(default_factory=dict)
    """Those it has taken, by prompt and round."""


@dataclass
class _ScorerSlot(_Slot):
    task: tuple[str, int] | None = None


class Pipeline:
    """Runs a plan to its end. Every piece that is there already is left as it is."""

    def __init__(self, plan: EvaluationPlan, resources: Resources, progress: Progress) -> None:
        self._plan = plan
        self._resources = resources
        self._progress = progress
        self._responses = _Responses(plan)
        self._judgements = _Judgements(plan)
        self._engines = [_EngineSlot() for _ in range(resources.generators)]
        self._scorers = [_ScorerSlot() for _ in range(resources.scorers)]
        self._slots: list[_Slot] = [*self._engines, *self._scorers]
        self._lost = 0

    def run(self) -> None:
        """Raises `UserError` for what the user has to mend, `RuntimeError` where too many actors were lost."""
        import ray

        try:
            while not (self._responses.finished and self._judgements.finished and not self._calls()):
                for engine in self._engines:
                    self._feed(engine)
                for scorer in self._scorers:
                    self._give_work(scorer)
                ready, _ = ray.wait(self._calls(), num_returns=1)
                for slot in self._slots:
                    if slot.call in ready:
                        self._collect(slot)
        finally:
            for slot in self._slots:
                if slot.actor is not None:
                    ray.kill(slot.actor)

    def _calls(self) -> list[Any]:
        return [slot.call for slot in self._slots if slot.call is not None]

    def _feed(self, engine: _EngineSlot) -> None:
        """Top up an idle engine's requests; where its policy has none left, give it another policy or end it."""
        if engine.call is not None:
            return
        if engine.label and not engine.requests and not self._responses.todo[engine.label]:
            self._end(engine)
        if not engine.label:
            engine.label = self._neediest()
        if engine.label:
            if engine.actor is None:
                engine.actor = self._start_generator(engine.label)
            new = self._responses.take(engine.label, self._room(engine))
            engine.requests |= {(request.prompt, request.round): request for request in new}
            engine.call = engine.actor.advance.remote(new)

    def _neediest(self) -> str:
        """The policy with the most requests left for each engine that it would then have; empty: none has any."""
        have = [engine.label for engine in self._engines]
        left = {label: len(todo) / (1 + have.count(label)) for label, todo in self._responses.todo.items() if todo}
        return max(left, key=left.__getitem__, default="")

    def _room(self, engine: _EngineSlot) -> int:
        """How many requests to give an engine: enough to keep it full, and a fair part of those left."""
        engines = max(len(self._engines) // len(self._plan.policies), 1)
        fair = math.ceil(len(self._responses.todo[engine.label]) / (2 * engines)) if engines > 1 else AT_WORK
        return min(max(fair, 1), AT_WORK - len(engine.requests))

    def _give_work(self, scorer: _ScorerSlot) -> None:
        if scorer.call is not None or self._judgements.finished:
            return
        if scorer.actor is None:  # it loads its models while the first responses are on their way
            scorer.actor = self._start_scorer()
        shares_gpu = 0 < self._resources.scorer_gpus < 1  # with an engine, beside which no policy may have room
        scorer.task = self._judgements.next(self._responses, log_probs=self._responses.finished or not shares_gpu)
        if scorer.task is not None:
            scorer.call = self._judgements.begin(scorer.actor, scorer.task)

    def _collect(self, slot: _Slot) -> None:
        """Take in what a call gave; what a lost actor was to do is done again by another."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        call, slot.call = slot.call, None
        try:
            result = ray.get(call)
        except RayActorError as error:
            if error.actor_init_failed:  # it would fail again
                raise UserError(f"{_what(slot)} cannot be started: {_last_line(error)}") from error
            self._lost += 1
            if self._lost > self._plan.config.scaling.max_failures:
                raise RuntimeError(f"{self._lost} actors were lost; the last: {error}") from error
            self._forget(slot)
            return
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        if isinstance(slot, _EngineSlot):
            for response in result:
                del slot.requests[response.prompt, response.round]
            self._responses.receive(slot.label, result)
            self._progress(responses=len(result))
            tokens = [response.tokens for response in result]
            metrics.responses_generated(self._plan.config.name, slot.label, tokens)
        elif isinstance(slot, _ScorerSlot) and slot.task is not None:
            self._judgements.receive(slot.task, result)
            count = len(self._plan.blocks[slot.task[1]])
            self._progress(**{"pairs" if slot.task[0] else "judged": count})
            if not slot.task[0]:
                metrics.prompts_judged(self._plan.config.name, count)
            slot.task = None

    def _forget(self, slot: _Slot) -> None:
        slot.actor = None
        if isinstance(slot, _EngineSlot):
            self._responses.todo[slot.label].extendleft(reversed(slot.requests.values()))
            slot.requests, slot.label = {}, ""
        elif isinstance(slot, _ScorerSlot) and slot.task is not None:
            self._judgements.give_back(slot.task)
            slot.task = None

    def _end(self, engine: _EngineSlot) -> None:
        import ray

        ray.kill(engine.actor)
        engine.actor, engine.label = None, ""

    def _start_generator(self, label: str) -> Any:
        import ray

        policy, resources = self._plan.policies[label], self._resources
        options = EngineOptions(
            str(policy.model.folder), policy.model.stored_dtype, policy.max_length,
            self._plan.config.scaling.tensor_parallel, resources.gpu_memory, policy.model.trust_remote_code,
            stop_ids=policy.stop_ids,
        )  # fmt: skip
        actor = ray.remote(Generator).options(
            num_cpus=resources.cpus,
            num_gpus=resources.generator_gpus,
            runtime_env={"env_vars": ENVIRONMENT},
            scheduling_strategy=_ANYWHERE,
        )
        return actor.remote(options, self._plan.config.sampling, self._plan.config.name, label)

    def _start_scorer(self) -> Any:
        import ray

        plan, resources = self._plan, self._resources
        actor = ray.remote(Scorer).options(
            num_cpus=resources.cpus,
            num_gpus=resources.scorer_gpus,
            runtime_env={"env_vars": ENVIRONMENT},
            scheduling_strategy=_ANYWHERE,
        )
        models = {label: judge.model for label, judge in plan.judges.items()}
        return actor.remote(models, plan.config.prompts.chat_template, plan.config.scoring, plan.config.name)


def _what(slot: _Slot) -> str:
    return f"models.{slot.label}: vLLM" if isinstance(slot, _EngineSlot) else "reward_models: a scorer"


def _last_line(error: Exception) -> str:
    """Of a traceback the line that says what went wrong."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
