"""Work on a Ray cluster: engines answer, scorers judge answers meanwhile, and what comes back reaches the disk.

The driver hands out requests and writes all that comes back, so actors need not see the evaluation's folder. An engine
always has more requests than it can work on at once; those that a lost actor had are asked for again, with the same
seeds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orpo_ray.cluster.waiting import Waiting, waits_for_room
from orpo_ray.config import EvaluationConfig, ScoreConfig
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.errors import UserError, last_line
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.evaluation.model_split import require_split
from orpo_ray.evaluation.places import Places, share_of, starts_workers
from orpo_ray.evaluation.plan import ENGINES
from orpo_ray.evaluation.work import Judgements, Task
from orpo_ray.inference.generation import (
    BATCH_INVARIANT,
    ENVIRONMENT,
    EngineOptions,
    Generator,
    Request,
    Response,
)
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.plain_generation import PlainGenerator
from orpo_ray.inference.scoring import Scorer, not_finite
from orpo_ray.telemetry import metrics

AT_WORK = 512
"""Requests that an engine has at a time, at least; where it computes more than half of it at once, as vLLM does on an
H100 (1,024), twice that."""
_OURS = f"{UserError.__module__}.{UserError.__qualname__}: "
"""What stands in a traceback before a line for the user."""


class Progress(Protocol):
    """Where the counts of what is done go."""

    def __call__(
        self, *, responses: int = 0, judged: int = 0, pairs: int = 0, not_finite: Mapping[str, int] | None = None
    ) -> None: ...


class Answering(Protocol):
    """A model that answers, as its engine has to know it."""

    @property
    def model(self) -> EvaluatedModel: ...
    @property
    def sampling(self) -> SamplingConfig: ...
    @property
    def engine(self) -> str: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def top_tokens(self) -> int: ...


class Questions(Protocol):
    """What engines are asked, by the label of the model that answers: policies prompts, or judges about answers."""

    todo: dict[str, deque[Request]]

    @property
    def models(self) -> Mapping[str, Answering]: ...
    @property
    def finished(self) -> bool: ...
    def receive(self, label: str, responses: list[Response]) -> None:
        """Take in, and write, what a model has answered."""


@dataclass
class _Slot:
    """A place for one actor, and the call that it works on."""

    number: int
    """Of the engines, or of the scorers."""
    actor: Any = None
    call: Any = None
    placed: Any = None
    """The actor that has been seen on a node."""

    def waits(self) -> bool:
        """Whether there is an actor that has no node yet."""
        actor = self.actor
        if actor is not self.placed and actor is not None and not waits_for_room(actor):
            self.placed = actor
        return actor is not None and actor is not self.placed

    def drop(self) -> None:
        """End the actor, whose work is done or lost."""
        import ray

        ray.kill(self.actor)
        self.actor = None


@dataclass
class _EngineSlot(_Slot):
    label: str = ""
    """The model that it has now; empty: none."""
    requests: dict[tuple[int, int], Request] = field(default_factory=dict)
    """Those it has taken, by prompt and round."""
    most: int = 0
    """Requests that it is given at a time; 0: it has not said yet that it is there."""

    @property
    def is_starting(self) -> bool:
        return self.actor is not None and not self.most

    def drop(self) -> None:
        super().drop()
        self.label, self.most, self.requests = "", 0, {}


@dataclass
class _ScorerSlot(_Slot):
    task: Task | None = None


def environment_of(config: EvaluationConfig | ScoreConfig, resources: Resources) -> dict[str, str]:
    """Variables of all actors."""
    asked = isinstance(config, EvaluationConfig) and config.generation.deterministic
    return ENVIRONMENT | (BATCH_INVARIANT if asked and resources.gpu_memory is not None else {})


class Pipeline:
    """Has all questions answered and all answers judged. What is there already nobody asks for."""

    def __init__(
        self,
        config: EvaluationConfig | ScoreConfig,
        questions: Questions,
        judgements: Judgements | None,
        resources: Resources,
        progress: Progress,
    ) -> None:
        """`judgements`: of the answers, by reward models; None where nobody scores them."""
        self._config = config
        self._resources = resources
        self._places = Places(resources, environment_of(config, resources))
        self._progress = progress
        self._questions = questions
        self._judgements = judgements
        self._engines = [_EngineSlot(number) for number in range(resources.generators)]
        self._scorers = [_ScorerSlot(number) for number in range(resources.scorers)]
        self._slots: list[_Slot] = [*self._engines, *self._scorers]
        self._lost = 0

    def run(self) -> None:
        """Raises `UserError` for what the user has to mend, and for too many lost actors (`scaling.max_failures`)."""
        import ray

        self._require_that_models_split()
        try:
            while not (self._questions.finished and self._all_judged and not self._calls()):
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
            self._places.release()

    def waiting(self) -> list[Waiting]:
        """What has found no node yet. May be asked from another thread while `run` runs."""
        resources = self._resources
        kinds = (
            ("engine", self._engines, 1 if resources.over_nodes else resources.generator_gpus),
            ("scorer", self._scorers, resources.scorer_gpus),
        )
        found = []
        for name, slots, gpus in kinds:
            count = sum(slot.waits() for slot in slots)
            if count:
                what = f"{count} of {len(slots)} {name}{'s' * (len(slots) > 1)}"
                found.append(Waiting(what, resources.cpus, gpus, len(slots)))
        return found

    @property
    def _all_judged(self) -> bool:
        return self._judgements is None or self._judgements.finished

    def _calls(self) -> list[Any]:
        return [slot.call for slot in self._slots if slot.call is not None]

    def _feed(self, engine: _EngineSlot) -> None:
        """Top up an idle engine's requests; where its model has none left, give it another model or end it."""
        if engine.call is not None:
            return
        if engine.label and not engine.requests and not self._questions.todo[engine.label]:
            engine.drop()
        if not engine.label:
            engine.label = self._neediest()
        if engine.label and engine.actor is None:
            engine.actor = self._start_generator(engine)
            engine.call = engine.actor.at_once.remote()
        elif engine.label:
            todo = self._questions.todo[engine.label]
            new = [todo.popleft() for _ in range(min(self._room(engine), len(todo)))]
            engine.requests |= {(request.prompt, request.round): request for request in new}
            engine.call = engine.actor.advance.remote(new)

    def _neediest(self) -> str:
        """The model with the most requests left for each engine that it would then have; empty: none has any."""
        have = [engine.label for engine in self._engines]
        left = {label: len(todo) / (1 + have.count(label)) for label, todo in self._questions.todo.items() if todo}
        return max(left, key=left.__getitem__, default="")

    def _room(self, engine: _EngineSlot) -> int:
        """How many requests to give an engine: enough to keep it full, and a fair part of those left."""
        engines = max(len(self._engines) // len(self._questions.models), 1)
        fair = math.ceil(len(self._questions.todo[engine.label]) / (2 * engines)) if engines > 1 else engine.most
        return min(max(fair, 1), engine.most - len(engine.requests))

    def _give_work(self, scorer: _ScorerSlot) -> None:
        import ray

        if scorer.call is not None or self._judgements is None or self._judgements.finished:
            return
        shared = self._resources.shared_place(scorer.number)
        if scorer.actor is None:  # it loads its models while the first responses are on their way
            if self._is_in_the_way(shared):
                return
            actor = ray.remote(Scorer).options(**self._places.scorer(scorer.number))
            scorer.actor = self._judgements.start(actor, share_of(self._resources, scorer.number))
        # Beside an engine no policy may have room.
        scorer.task = self._judgements.next(log_probs=self._questions.finished or shared is None)
        if scorer.task is not None:
            scorer.call = self._judgements.begin(scorer.actor, scorer.task)

    def _is_in_the_way(self, shared: tuple[int, int] | None) -> bool:
        """Whether a scorer, which shares this place, would be in the way of an engine that starts.

        Beside it, one would take memory while an engine measures what is free. Of its own GPU it could, as engines of
        several are placed, leave one of them too few on every node.
        """
        if shared is not None:
            return self._engines[shared[0]].is_starting
        starting = any(engine.is_starting for engine in self._engines)
        return self._resources.generator_gpus > 1 and starting and not any(engine.most for engine in self._engines)

    def _collect(self, slot: _Slot) -> None:
        """Take in what a call gave; what a lost actor was to do is done again by another."""
        import ray
        from ray.exceptions import (
            NodeDiedError,
            ObjectLostError,
            OutOfMemoryError,
            RayActorError,
            RayTaskError,
            WorkerCrashedError,
        )

        call, slot.call = slot.call, None
        try:
            result = ray.get(call)
        except (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError, WorkerCrashedError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:  # it would fail again
                told = last_line(error)
                said = f"{self._what(slot)} cannot be started: {told}"
                raise UserError(told.removeprefix(_OURS) if told.startswith(_OURS) else said) from error
            self._lost += 1
            most = self._config.scaling.max_failures
            if self._lost > most:
                raise UserError(
                    f"{self._lost} actors were lost (scaling.max_failures={most}); the last, {self._what(slot)}: "
                    f"{last_line(error)}"
                ) from error
            self._forget(slot)
            return
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        if isinstance(slot, _EngineSlot) and slot.is_starting:
            slot.most = max(AT_WORK, 2 * result)
        elif isinstance(slot, _EngineSlot):
            for response in result:
                del slot.requests[response.prompt, response.round]
            self._questions.receive(slot.label, result)
            self._progress(responses=len(result))
            tokens = [response.tokens for response in result]
            metrics.responses_generated(self._config.name, slot.label, tokens)
        elif isinstance(slot, _ScorerSlot) and slot.task is not None and self._judgements is not None:
            count = self._judgements.receive(slot.task, result)
            if slot.task.log_probs:
                self._progress(pairs=count)
            else:
                self._progress(judged=count, not_finite=not_finite(result))
                metrics.prompts_judged(self._config.name, count)
            slot.task = None

    def _what(self, slot: _Slot) -> str:
        if isinstance(slot, _EngineSlot):
            answering = self._questions.models[slot.label]
            return f"{answering.model.key}: {ENGINES[answering.engine]}"
        return "reward_models: a scorer"

    def _forget(self, slot: _Slot) -> None:
        if isinstance(slot, _EngineSlot):
            self._questions.todo[slot.label].extendleft(reversed(slot.requests.values()))
        elif isinstance(slot, _ScorerSlot) and slot.task is not None and self._judgements is not None:
            self._judgements.give_back(slot.task)
            slot.task = None
        slot.drop()  # one that does not answer may be there yet

    def _start_generator(self, engine: _EngineSlot) -> Any:
        import ray

        answering, resources, number = self._questions.models[engine.label], self._resources, engine.number
        plain = answering.engine == "transformers"
        actor = ray.remote(PlainGenerator if plain else Generator).options(**self._places.engine(number))
        memory = resources.engine_memory(number)
        if plain:
            limit = memory if resources.sharers(number) else None
            return actor.remote(answering.model, answering.sampling, answering.stop_ids, self._config.name, limit)
        options = EngineOptions(
            str(answering.model.folder), answering.model.generation_dtype, answering.max_length,
            resources.tensor_parallel, memory, answering.model.trust_remote_code,
            stop_ids=answering.stop_ids, top_tokens=answering.top_tokens,
            pipeline_parallel=resources.pipeline_parallel, workers_by_ray=starts_workers(resources, number),
        )  # fmt: skip
        return actor.remote(options, answering.sampling, self._config.name, answering.model)

    def _require_that_models_split(self) -> None:
        """Raises `UserError` for a model that vLLM does not part among the GPUs of an engine."""
        for label, answering in self._questions.models.items():
            if self._questions.todo[label]:
                require_split(answering.model, self._resources.tensor_parallel, self._resources.pipeline_parallel)
