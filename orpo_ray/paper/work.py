"""What a stage computes, how long that takes, and what it leaves on the disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.costs.device import Device, Shape
from orpo_ray.costs.step import BF16, FP32, Lengths, Load, Network
from orpo_ray.data import dataset
from orpo_ray.data.schedule import RoundSchedule
from orpo_ray.evaluation.cluster import share_out
from orpo_ray.paper.amounts import Amounts, Pairs, Prompts
from orpo_ray.paper.networks import Networks, Trained
from orpo_ray.stages.graph import Graph, StageConfig
from orpo_ray.stages.room import Nodes, Room
from orpo_ray.training.source import schedule_of

_START = {"CPU": 5.5, "GPU": 60.0}
"""Seconds of a stage beside its work: workers, the model, the first and the last look at files, the page. On CPUs
toy-base takes 24.5 s, of which 16.0 are steps and 3 evaluations (one worker, one core). On GPUs ASSUMED."""
_ENGINE = {("CPU", "vllm"): 20.0, ("GPU", "vllm"): 60.0}
"""Seconds of an engine's start, ASSUMED; none where it is transformers."""
_FILES = 150_000
"""Bytes of a run beside models and checkpoints: page, configuration, tokenizer's files."""
_LINE = 400
"""Bytes of a step in metrics and curves."""
_RESPONSE = 250
"""Bytes of a response with its rewards beside its text, in pieces and tables."""
_CHARACTERS = 4.2
"""Of a token of a response."""


@dataclass(frozen=True)
class Work:
    """None: nobody knows, for the size of the model or of the data is not known here."""

    steps: int | None = None
    seconds: float | None = None
    """With all of its room."""
    disk: float | None = None
    """Bytes when it is done."""
    flops: float | None = None
    """Of all forwards and backwards of training; model FLOPs, without recomputation."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed of its data, or why it cannot be told."""


class _Place(NamedTuple):
    """Where a stage computes."""

    device: Device
    kind: str
    """`CPU`, `GPU`."""
    room: Room
    nodes: Nodes


class Works:
    """The work of each stage of a graph, on `devices` by kind (`CPU`, `GPU`) of a cluster of these `nodes`."""

    def __init__(self, graph: Graph, nodes: Nodes, devices: dict[str, Device]) -> None:
        self._networks = Networks(graph)
        self._amounts = Amounts(self._networks)
        self._runs = [stage.config for stage in graph if isinstance(stage.config, TrainConfig)]
        self._graph, self._nodes, self._devices = graph, nodes, devices

    def of(self, label: str, room: Room) -> Work:
        """Raises `UserError` where data that are here cannot be read."""
        config = self._graph.stages[label].config
        kind = "GPU" if room.gpus and on_gpus(config, room.gpus) else "CPU"
        place = _Place(self._devices[kind], kind, room, self._nodes)
        match config:
            case TrainConfig():
                return self._training(config, place)
            case SweepConfig():
                return self._sweep(config, place)
            case EvaluationConfig():
                needed = self._graph.needed_by(label)
                runs = [self._graph.stages[each].config for each in self._graph.stages if each in needed]
                return self._evaluation(
                    config, place, [run for run in runs if isinstance(run, TrainConfig) and _asks_pairs(run)]
                )

    # Training

    def _training(self, run: TrainConfig, place: _Place) -> Work:
        pairs, size = self._amounts.pairs(run), self._networks.trained(run)
        limit = run.train.max_steps
        if pairs is None:
            return Work(limit, notes=(f"{_names(run)}: its number of records is not known here",))
        schedule = schedule_of(run, cast(dataset.Pairs, range(pairs.train)))  # which reads their number alone
        steps, notes = schedule.total_steps, (pairs.note,) if pairs.note else ()
        if size is None:
            root, _ = self._networks.root(run.model.name_or_path)
            return Work(steps, notes=(*notes, f"{root}: its size is not known here"))
        evaluations = 1 + math.ceil(steps / (run.train.eval_every_steps or schedule.steps_per_epoch))
        critic = self._critic(run)
        trained = size.trained + (critic.parameters if critic else 0)
        disk = _run_bytes(run, size._replace(trained=trained), steps, schedule.steps_per_epoch, evaluations)
        if isinstance(schedule, RoundSchedule):
            assert run.rollouts is not None
            rounds = math.ceil(steps / schedule.steps_per_round)
            seconds, flops = self._on_rollouts(run, run.rollouts, pairs, size, place, steps, rounds, evaluations)
            disk += rounds * run.rollouts.prompts * run.rollouts.samples * _RESPONSE
        else:
            seconds, flops = self._on_pairs(run, pairs, size, place, steps, evaluations)
        return Work(steps, _START[place.kind] + seconds, disk, flops, notes)

    def _on_pairs(
        self, run: TrainConfig, pairs: Pairs, size: Trained, place: _Place, steps: int, evaluations: int
    ) -> tuple[float, float]:
        """Seconds, and FLOPs of training."""
        objective, batch = run.objective, run.train.global_batch_size
        own = pairs.load(best_alone=objective.best_alone, score_prompts=objective.score_prompts)
        both = pairs.load(best_alone=False, score_prompts=objective.score_prompts)
        step = own.times(batch)
        shape = _shape(run, step.tokens)
        seconds = steps * place.device.train(size.net, step, size.trained, shape)
        read = float(evaluations * pairs.held_out)
        if "reference" in objective.columns:  # each log-prob once, before training
            read += pairs.train + pairs.held_out
        held_out = both.times(read)
        seconds += place.device.forward(size.net, held_out, _shape(run, held_out.tokens))
        return seconds, steps * shape.ranks * shape.flops(size.net, step)

    def _on_rollouts(
        self, run: TrainConfig, rollouts: RolloutsConfig, pairs: Pairs, size: Trained, place: _Place,
        steps: int, rounds: int, evaluations: int,
    ) -> tuple[float, float]:  # fmt: skip
        """As `_on_pairs`. Responses are taken to be as long as those of the data, where these are known."""
        response, longest = self._written(run, rollouts, pairs)
        prompt = float(pairs.lengths[:, 0].mean())
        one = Load.of(_rounded(prompt, response), score_prompts=False)
        answered = rounds * rollouts.prompts * rollouts.samples
        asked = evaluations * min(rollouts.eval_prompts, pairs.held_out)
        engines = Shape(max(1, int(place.room.gpus)), threads=_threads(run))
        seconds = _ENGINE.get((place.kind, rollouts.engine), 0.0)
        for times, number in ((rounds, rollouts.prompts * rollouts.samples), (evaluations, asked / evaluations)):
            seconds += times * place.device.write(size.net, number, response, longest, prompt, engines)
        judges, critic = self._judges(rollouts), self._critic(run)
        scoring = [size.net, size.net, *judges, *([critic] if critic else [])]  # old, reference, rewards
        read = one.times(answered + asked)
        seconds += sum(place.device.forward(net, read, _shape(run, read.tokens)) for net in scoring)
        step = one.times(run.train.global_batch_size * rollouts.samples)
        flops = 0.0
        for net, trained in [(size.net, size.trained), *([(critic, critic.parameters)] if critic else [])]:
            shape = _shape(run, step.tokens)
            seconds += steps * place.device.train(net, step, trained, shape)
            flops += steps * shape.ranks * shape.flops(net, step)
        return seconds, flops

    def _judges(self, rollouts: RolloutsConfig) -> list[Network]:
        found = (self._networks.asked(each.path) for each in rollouts.rewards.values() if each.path != "toy")
        return [net for net in found if net is not None]

    def _critic(self, run: TrainConfig) -> Network | None:
        """As large as the first reward model, where it does not say what it starts from."""
        if run.rollouts is None or not run.objective.has_critic:
            return None
        named = getattr(run.objective, "critic", None)
        return self._networks.asked(named) if named else next(iter(self._judges(run.rollouts)), None)

    def _written(self, run: TrainConfig, rollouts: RolloutsConfig, pairs: Pairs) -> tuple[float, float]:
        """Tokens of a response in the mean, and of the longest of those that are written together."""
        if pairs.lengths.shape[1] > 1:
            return min(float(pairs.lengths[:, 1:].mean()), rollouts.max_tokens), rollouts.max_tokens
        data = run.data.model_dump_json(include={"train", "train_split"})
        for other in self._runs:  # of the same records, read as pairs
            if other.rollouts is None and other.data.model_dump_json(include={"train", "train_split"}) == data:
                found = self._amounts.pairs(other)
                if found is not None and found.lengths.shape[1] > 1:
                    responses = found.lengths[:, 1:]
                    return min(float(responses.mean()), rollouts.max_tokens), min(responses.max(), rollouts.max_tokens)
        return rollouts.max_tokens, rollouts.max_tokens

    def _sweep(self, config: SweepConfig, place: _Place) -> Work:
        """Every trial to its end: what a scheduler stops is not known before."""
        run = config.training(config.first_point, config.name, config.storage)
        one, trials = self._training(run, place), config.number_of_trials
        if one.seconds is None or one.disk is None or one.steps is None or one.flops is None:
            return Work(one.steps and one.steps * trials, notes=one.notes)
        workers = run.scaling.most_workers
        if place.kind == "GPU":
            at_a_time = place.room.gpus / (workers * run.scaling.gpus_per_worker)
        else:
            at_a_time = place.room.cpus / (workers * run.scaling.least_cpus_per_worker)
        if isinstance(config.concurrency, int):
            at_a_time = min(at_a_time, config.concurrency)
        rounds = math.ceil(trials / max(1, int(at_a_time)))
        kept = min(trials, config.keep)
        disk = kept * one.disk + (trials - kept) * (_FILES + _LINE * one.steps)
        return Work(trials * one.steps, rounds * one.seconds, disk, trials * one.flops, one.notes)

    # Evaluations

    def _evaluation(self, config: EvaluationConfig, place: _Place, runs: Sequence[TrainConfig]) -> Work:
        asked = self._amounts.prompts(config, list(runs))
        if asked is None:
            return Work(notes=(f"{config.prompts.source}: its number of prompts is not known here",))
        policies = {label: self._networks.asked(model.path) for label, model in config.asked.items()}
        judges = [self._networks.asked(name) for name in config.reward_models.values() if name != "toy"]
        responses = asked.number * config.sampling.rounds * config.prompts.turns
        written = responses * len(policies)
        disk = _FILES + written * (_RESPONSE + _CHARACTERS * asked.response)
        notes = [asked.note] if asked.note else []
        notes += [f"judges in words ({', '.join(config.judges)}) are not counted"] if config.judges else []
        if unknown := [label for label, net in policies.items() if net is None]:
            return Work(disk=disk, notes=(*notes, f"{', '.join(unknown)}: its size is not known here"))
        dealt = share_out(config.scaling, place.nodes, max(1, responses), scoring=bool(judges))
        threads = max(1.0, float(dealt.cpus))
        engines = Shape(max(1, dealt.generators), threads=threads)
        scorers = Shape(max(1, dealt.scorers), threads=threads)
        writing = sum(
            place.device.write(net, responses, asked.response, asked.longest, asked.prompt, engines)
            + _ENGINE.get((place.kind, config.generation.engine), 1.0)
            for net in policies.values() if net is not None
        )  # fmt: skip
        own = [net for net in policies.values() if net is not None] if config.log_probs else []
        scoring = self._scored(asked, len(policies) * config.sampling.rounds, judges, place, scorers)
        scoring += self._scored(asked, 2, own, place, scorers)
        # Scorers work beside engines, but for the last model's responses.
        seconds = _START[place.kind] + max(writing, scoring) + min(writing, scoring) / max(1, len(policies))
        return Work(None, seconds, disk, None, tuple(notes))

    def _scored(self, asked: Prompts, each: int, nets: Sequence[Network | None], place: _Place, shape: Shape) -> float:
        """Seconds of forwards over all prompts with `each` responses."""
        if not each:
            return 0.0
        one = Load.of(_rounded(asked.prompt, *[asked.response] * each), score_prompts=False)
        load = one.times(asked.number)
        micro_batches = math.ceil(asked.number / 32)  # blocks of prompts, each judged by itself
        return sum(
            place.device.forward(net, load, shape._replace(micro_batches=math.ceil(micro_batches / shape.ranks)))
            for net in nets if net is not None
        )  # fmt: skip


def on_gpus(config: StageConfig, gpus: float) -> bool:
    """Whether a stage computes on GPUs of a cluster that has so many."""
    if isinstance(config, TrainConfig):
        return uses_gpus(config.scaling, int(gpus))
    if isinstance(config, SweepConfig):
        return on_gpus(config.training(config.first_point, config.name, config.storage), gpus)
    return config.scaling.use_gpu is True or (config.scaling.use_gpu == "auto" and gpus > 0)


def _asks_pairs(config: StageConfig) -> bool:
    return isinstance(config, TrainConfig) and config.rollouts is None


def _names(run: TrainConfig) -> str:
    return ", ".join(one.source for one in run.data.train_sources)


def _rounded(*lengths: float) -> Lengths:
    """One record of these lengths."""
    return np.array([[max(1, round(length)) for length in lengths]])


def _threads(run: TrainConfig) -> float:
    return run.scaling.least_cpus_per_worker


def _shape(run: TrainConfig, tokens: float) -> Shape:
    """Of a step, or of a reading, of so many packed tokens on all ranks."""
    ranks = run.scaling.most_workers
    cuts = max(1, math.ceil(tokens / ranks / run.train.tokens_per_microbatch))
    return Shape(ranks, cuts, run.train.zero_stage, _threads(run))


def _run_bytes(run: TrainConfig, size: Trained, steps: int, steps_per_epoch: int, evaluations: int) -> float:
    """Checkpoints (float32 masters and two moments), models that are kept, and the rest."""
    element = BF16 if run.model.dtype == "bfloat16" else FP32
    train = run.train
    every = train.checkpoint_every_steps or steps_per_epoch
    made = math.ceil(steps / every)
    checkpoints = min(made, train.keep_checkpoints + train.keep_best_checkpoints)
    models = 2 if train.keep == "both" else 1
    adapters = size.trained * element if run.model.lora is not None else 0
    whole = size.net.parameters * element
    beside = whole if run.eval.win_rate is not None else 0  # a model in each checkpoint, to be asked
    return (
        checkpoints * (3 * FP32 * size.trained + beside) + models * (whole + adapters)
        + _FILES + _LINE * (steps + evaluations)
    )  # fmt: skip
