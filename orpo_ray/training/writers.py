"""Those who write and score for a policy in training: Ray actors that rank 0 starts, and speaks to (issue 19)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from orpo_ray.atomic import new_file
from orpo_ray.cluster.turns import let_go
from orpo_ray.config import TrainConfig
from orpo_ray.data.dataset import Prompts
from orpo_ray.data.prompts import Prompt, readable
from orpo_ray.data.schedule import Indices
from orpo_ray.data.templates import Renderer
from orpo_ray.errors import Diverged, UserError
from orpo_ray.inference.drawn import answer_of
from orpo_ray.inference.generation import BATCH_INVARIANT, ENVIRONMENT, Request
from orpo_ray.inference.live import LiveOptions, Sample, pack_weights
from orpo_ray.inference.live_plain import LivePlain
from orpo_ray.inference.live_vllm import LiveVllm
from orpo_ray.inference.rewards import Rewards, RewardSource, Scored
from orpo_ray.inference.scoring import GpuShare
from orpo_ray.inference.speaking import Answer
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import StateDict
from orpo_ray.parsing import object_from_json
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.telemetry.metrics import run_and_trial
from orpo_ray.training.export import export_model

_AT_WORK = 512
"""Requests that an engine has at a time, at least; twice what it computes at once, where that is more."""
_SCORED_AT_ONCE = 512
"""Responses in one call of a scorer, which has to answer within `scaling.hang_timeout`; and of no more than
`_PROMPTS_AT_ONCE` prompts."""
_PROMPTS_AT_ONCE = 64
_OF_THE_REST = 0.9
"""Of a GPU's memory that an engine leaves, how much is the scorer's beside it."""
_LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.GetTimeoutError)
"""Errors of an actor that is gone, or does not answer."""
_SHOWN = 8
"""Held-out prompts whose responses are kept as text, at each evaluation."""


class Writers:
    """Engines and scorers of one run. They begin at the first use, and end with the process that began them."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rewards: Sequence[RewardSource],
        device: torch.device,
        threads: int,
        engines: int,
        gpus: float,
        note: Callable[[str], None],
    ) -> None:
        """`threads`: that a scorer on CPUs computes with, and all engines together; `engines`: how many there are, each
        on so many `gpus`, 0: on the trainer's own device, which they take turns with. `note` is told what a person
        should know."""
        assert config.rollouts is not None
        self._config, self._rollouts = config, config.rollouts
        self._model, self._tokenizer, self._rewards = model, tokenizer, rewards
        self._device, self._threads, self._gpus, self.note = device, threads, gpus, note
        self._renderer = Renderer(tokenizer, config.data.chat_template, date=config.data.date)
        self._engines: list[Any] = [None] * engines
        self._most = [_AT_WORK] * engines
        """Requests that each has at a time."""
        self._sleeps = self._rollouts.sleep and device.type == "cuda" and not gpus
        self._asleep: set[int] = set()
        """Numbers of engines that have given back their memory, and know no weights."""
        self._scorer: Any = None
        self._weights: Any = None
        """In the object store."""
        self._step = -1
        self._lost = 0

    def load(self, weights: StateDict, step: int) -> str:
        """Have the engines draw by these weights, the policy's of `step`; returns their digest."""
        digest = self._put(weights, step)
        let_go(self._device)
        started = {number: engine for number, engine in enumerate(self._engines) if engine is not None}
        self._ask({number: engine.load.remote(self._weights, step) for number, engine in started.items()})
        self._asleep.clear()
        return digest

    def _ask(self, calls: dict[int, Any]) -> None:
        """Have what engines are asked, by their numbers, answered; one that is lost is begun anew when it is needed."""
        for number, call in calls.items():
            try:
                self._answer_of(call)
            except _LOST as error:
                self._forget(number, error)

    def _put(self, weights: StateDict, step: int) -> str:
        """Into the object store, merged; and at first into a folder."""
        whole = merged_weights(self._model, weights)
        if self._step < 0:
            export_model(
                self._folder,
                self._model,
                dict(whole),  # it is emptied while it is written
                self._tokenizer,
                self._config,
                {"step": step},
                None,
                "to draw from",
            )
        self._weights = None  # the store need not hold two policies
        self._weights = ray.put(pack_weights(whole))
        self._step = step
        return network_digest(self._model, whole)

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        """Samples of all `requests` as they end; then engines sleep that take turns with the trainer. A lost engine is
        begun anew, and asked again for what it had: the same seeds. Raises `UserError` after `scaling.max_failures` of
        them."""
        todo = list(reversed(requests))
        taken: list[dict[tuple[int, int], Request]] = [{} for _ in self._engines]
        calls: dict[Any, int] = {}
        while todo or any(taken):
            for number, held in enumerate(taken):
                if number not in calls.values() and (todo or held):
                    engine, most = self._engine(number), self._most[number]
                    share = min(most - len(held), -(-len(todo) // (2 * len(taken))) if len(taken) > 1 else most)
                    new = [todo.pop() for _ in range(min(share, len(todo)))]
                    held |= {(request.prompt, request.round): request for request in new}
                    calls[engine.advance.remote(new)] = number
            ready, waiting = ray.wait(list(calls), num_returns=1, timeout=self._config.scaling.hang_timeout)
            number = calls.pop(call := (ready or waiting)[0])
            try:
                found = self._answer_of(call, 0 if not ready else None)
            except _LOST as error:
                self._forget(number, error)
                todo += reversed(taken[number].values())
                taken[number] = {}
                continue
            for sample in found:
                del taken[number][sample.prompt, sample.sample]
            yield found
        if self._sleeps:
            awake = {number: each for number, each in enumerate(self._engines) if each and number not in self._asleep}
            self._asleep |= awake.keys()
            self._ask({number: engine.sleep.remote() for number, engine in awake.items()})

    def score(self, data: Prompts, records: NDArray[np.int64], samples: Sequence[Sample]) -> list[Scored]:
        """Of each sample. `records`: of `data`, that the prompts of the samples are."""
        found: dict[int, Scored] = {}
        for places in scored_together([sample.prompt for sample in samples]):
            block = []
            for prompt, of_prompt in places:
                question = data.question(int(records[prompt]))
                asked = data.pair(int(records[prompt]))[0].tolist()
                block.append((question, [self._answer(question, asked, samples[place]) for place in of_prompt]))
            for (_, of_prompt), given in zip(places, self._scores(block), strict=True):
                found |= dict(zip(of_prompt, given, strict=True))
        return [found[place] for place in range(len(samples))]

    def show(
        self, step: int, data: Prompts, records: Indices, samples: Sequence[Sample], scored: Sequence[Scored]
    ) -> None:
        """Add the responses to the first held-out prompts to `samples.jsonl`, in the place of those of this step or of
        later ones, which a killed run has left. They are for people to read: where they cannot be written, the run
        goes on."""
        path = self._config.run_dir / "samples.jsonl"
        try:
            self._show(path, step, data, records, samples, scored)
        except (OSError, UserError) as error:
            self.note(f"{path}: the responses of step {step} are not kept: {error}")

    def _show(
        self,
        path: Path,
        step: int,
        data: Prompts,
        records: Indices,
        samples: Sequence[Sample],
        scored: Sequence[Scored],
    ) -> None:
        lines = []
        for written in path.read_bytes().splitlines() if path.is_file() else []:
            with suppress(ValueError):  # damaged lines are left out
                held = object_from_json(written)
                lines += [held] if isinstance(held.get("step"), int) and held["step"] < step else []
        for sample, one in list(zip(samples, scored, strict=True))[:_SHOWN]:
            record = int(records[sample.prompt])
            question = data.question(record)
            text = self._answer(question, data.pair(record)[0].tolist(), sample).text
            prompt = readable(question.as_found.prompt)
            lines.append({"step": step, "prompt": prompt, "response": text, "reward": one.score, "ended": sample.ended})
        with new_file(path) as new:
            new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @property
    def _folder(self) -> Path:
        """A model for engines to begin with. Its name keeps it out of a mirror: each try writes it anew."""
        return RunFolder(self._config.run_dir).model_to_draw_from

    def _answer(self, question: Prompt, asked: Sequence[int], sample: Sample) -> Answer:
        return answer_of(question, asked, sample.ids, sample.ended, self._renderer)

    def _engine(self, number: int) -> Any:
        """The engine of this number, awake, with the weights of now. One that is lost as it begins is begun anew."""
        while self._engines[number] is None or number in self._asleep:
            if self._engines[number] is None:
                self._engines[number] = self._begun(number)
            engine = self._engines[number]
            try:
                self._answer_of(engine.load.remote(self._weights, self._step))
                self._most[number] = max(_AT_WORK, 2 * self._answer_of(engine.at_once.remote()))
                self._asleep.discard(number)
            except _LOST as error:
                self._forget(number, error)
        return self._engines[number]

    def _begun(self, number: int) -> Any:
        """A new engine, which has to be given its weights yet."""
        rollouts, on_gpu = self._rollouts, self._device.type == "cuda"
        threads = max(1, self._threads // len(self._engines))  # they draw at a time
        options = LiveOptions(
            folder=str(self._folder), dtype=self._config.model.dtype, max_length=self._config.data.max_length,
            max_tokens=rollouts.max_tokens, temperature=rollouts.temperature, stop_ids=self._renderer.end_ids,
            gpu_memory=rollouts.gpu_memory if on_gpu else None, sleeps=self._sleeps,
            threads=None if on_gpu else threads,
        )  # fmt: skip
        kind = LiveVllm if rollouts.engine == "vllm" else LivePlain
        remote = ray.remote(kind).options(**self._place(threads, number))
        return remote.remote(options, *run_and_trial(self._config.run_dir))

    def _scores(self, block: list[tuple[Prompt, list[Answer]]]) -> list[list[Scored]]:
        """By the scorer, which is begun anew where it was lost."""
        while True:
            if self._scorer is None:
                remote = ray.remote(Rewards).options(**self._place(self._threads))
                run, trial = run_and_trial(self._config.run_dir)
                share = None
                if 0 < self._gpus < 1:  # with an engine
                    share = GpuShare(_OF_THE_REST * (1 - self._rollouts.gpu_memory), 1.0)
                self._scorer = remote.remote(self._rewards, run=run, trial=trial, share=share)
            try:
                found: list[list[Scored]] = self._answer_of(self._scorer.score.remote(block))
            except _LOST as error:
                self._count_lost("a scorer", error)
                ray.kill(self._scorer)
                self._scorer = None
            else:
                return found

    def _answer_of(self, call: Any, patience: float | None = None) -> Any:
        """What an actor answers within so many seconds, by default `scaling.hang_timeout`. Raises one of `_LOST`, and
        `UserError` where the actor does so."""
        try:
            return ray.get(call, timeout=self._config.scaling.hang_timeout if patience is None else patience)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise (Diverged if isinstance(error.cause, Diverged) else UserError)(str(error.cause)) from error
            raise

    def _place(self, threads: int, number: int = 0) -> dict[str, Any]:
        """What an actor asks of the cluster: beside the trainer, on its node, nothing, for they take turns. Several
        engines there are on a GPU of its each."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        environment = environment_of(
            self._device, threads, number, takes_turns=not self._gpus, deterministic=self._config.train.deterministic
        )
        here = ray.get_runtime_context().get_node_id()
        return {
            "num_cpus": 0, "num_gpus": self._gpus, "runtime_env": {"env_vars": environment},
            # Either way not within the resources of the workers.
            "scheduling_strategy": "DEFAULT" if self._gpus else NodeAffinitySchedulingStrategy(here, soft=False),
        }  # fmt: skip

    def _forget(self, number: int, error: Exception) -> None:
        self._count_lost("an engine", error)
        ray.kill(self._engines[number])  # one that does not answer may be there yet
        self._engines[number] = None
        self._asleep.discard(number)

    def _count_lost(self, what: str, error: Exception) -> None:
        """Raises `UserError` where one of its own keeps it from being begun, or too many were lost. What else keeps it
        may be gone by the next try: memory that another process is giving back."""
        if isinstance(error, ray.exceptions.GetTimeoutError):
            error = TimeoutError(f"it has not answered for {self._config.scaling.hang_timeout:g} s")
        told = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
            ours = f"{UserError.__module__}.{UserError.__qualname__}: "
            if told.startswith(ours):
                raise UserError(told.removeprefix(ours))
            told = f"it cannot be started: {told}"
        self._lost += 1
        most = self._config.scaling.max_failures
        if self._lost > most:
            raise UserError(
                f"rollouts: {self._lost} actors were lost (scaling.max_failures={most}); the last, {what}: {told}"
            )
        self.note(f"rollouts: {what} was lost and is begun anew: {told}")


def environment_of(
    device: torch.device, threads: int, number: int, *, takes_turns: bool, deterministic: bool
) -> dict[str, str]:
    """What engine `number`, or a scorer, has to find in its environment where training is on `device`; `takes_turns`:
    with training, on a device of this process's."""
    if device.type != "cuda":
        return {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    environment = ENVIRONMENT | (BATCH_INVARIANT if deterministic else {})
    if not takes_turns:
        return environment
    visible = visible_gpus()
    # Ray, of which no GPU is asked, is not to hide it.
    own = {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)], "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return environment | own


def visible_gpus() -> list[str]:
    """What CUDA calls those that this process sees, which engines that take turns with it are spread over; where
    nothing is hidden from it, those that Ray has given it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", []) if ray.is_initialized() else []
    return assigned or ["0"]


def scored_together(prompts: Sequence[int]) -> Iterator[list[tuple[int, list[int]]]]:
    """The calls of a scorer, each of prompts with the places of responses to them. `prompts`: of each response.

    A prompt's responses are in one call, where it has not too many for one.
    """
    by_prompt: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(place)
    call: list[tuple[int, list[int]]] = []
    for prompt, places in by_prompt.items():
        for start in range(0, len(places), _SCORED_AT_ONCE):
            part = places[start : start + _SCORED_AT_ONCE]
            if len(call) == _PROMPTS_AT_ONCE or sum(len(of) for _, of in call) + len(part) > _SCORED_AT_ONCE:
                yield call
                call = []
            call.append((prompt, part))
    if call:
        yield call
