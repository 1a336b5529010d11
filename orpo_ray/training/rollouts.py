"""Steps over what the policy itself writes: a round is drawn, scored, credited, and trained on (issue 19).

Rank 0 speaks to engines and to those that score; log-probs and values are computed by all ranks, in the loop's own
packed forward; what follows from them is the same numbers on each.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orpo_ray.cluster.turns import let_go
from orpo_ray.config import TrainConfig
from orpo_ray.config.objectives import OnlineConfig, PolicyGradientSection
from orpo_ray.data.dataset import Ids, Prompts
from orpo_ray.data.rollouts import Rollouts
from orpo_ray.data.schedule import RoundSchedule
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request, request_seed
from orpo_ray.inference.rewards import reward_metrics
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import StateDict
from orpo_ray.objectives.advantages import Floats, adapted, explained_variance, mismatch, response_totals
from orpo_ray.objectives.credit import token_columns
from orpo_ray.objectives.registry import build_objective
from orpo_ray.training.batches import MicroBatch, micro_batches
from orpo_ray.training.engine import Engine
from orpo_ray.training.measuring import planned
from orpo_ray.training.rollout_files import RolloutFiles
from orpo_ray.training.rollout_scores import by_token
from orpo_ray.training.round import Round, Written, differing, first_of_each, groups_of, ids_of, learned_scores
from orpo_ray.training.source import Arrays, Instead, schedule_of
from orpo_ray.training.writers import Writers

_Result = TypeVar("_Result")

_PATIENCE = 5.0  # seconds between looks of all ranks at whether rank 0 is done
_APART = {"float32": ("mismatch_max", 1e-4), "bfloat16": ("mismatch_mean", 4 * 2.0**-7)}
"""How far a token's log-probs by engine and trainer may be apart, in nats, before it is told: the largest of float32;
of bfloat16, whose logits alone are rounded by so much, the mean."""
_BEGUN, _PASSED = "kl_coefficient", "rounds_passed_over"


class _Stopped(Exception):
    """The run is to end before what rank 0 works on is there."""


class RolloutSource:
    """Rounds of rollouts of the policy that `engine` trains."""

    def __init__(
        self,
        engine: Engine,
        config: TrainConfig,
        train: Prompts,
        held_out: Prompts,
        reference: PackedPolicy,
        writers: Writers | None,
        files: RolloutFiles,
        oldest: Callable[[], int],
        kept: dict[str, float],
        carried: Arrays,
    ) -> None:
        """`writers`, on rank 0 alone: engines and scorers; `oldest`: step of the oldest checkpoint; `kept` and
        `carried`: what that one kept that the run continues from."""
        assert config.rollouts is not None
        schedule = schedule_of(config, train)
        assert isinstance(schedule, RoundSchedule)
        self.objective = build_objective(config.objective)
        self.schedule, self.train, self.held_out = schedule, train, held_out
        self._engine, self._config, self._rollouts = engine, config, config.rollouts
        self._reference, self._writers, self._files = reference, writers, files
        self._oldest = oldest
        self._coefficient = kept.get(_BEGUN, getattr(config.objective, "kl_coefficient", 0.0))
        """Of the next round."""
        self._passed = int(kept.get(_PASSED, 0))
        """Rounds in a row, up to this one, that had nothing to train on."""
        self._round: Round | None = None
        self._carried = carried
        self._sent = -1
        """The step whose weights the engines have."""
        self._weights = ""
        """Their digest, on rank 0."""
        self._over = threading.Event()
        """Set where what rank 0 works on is no longer wanted."""
        self._told_apart = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orpo_ray-rollouts")

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def epoch(self, step: int) -> float:
        schedule = self.schedule
        return step * schedule.per_round / (schedule.prompts * schedule.steps_per_round)

    def record(self, number: int) -> int | str:
        assert self._round is not None
        return self.train.record(self._round.records[number])

    def kept(self) -> dict[str, float]:
        passed = {_PASSED: float(self._passed)} if self._passed else {}
        priced = isinstance(self._config.objective, PolicyGradientSection)
        return passed | ({_BEGUN: self._coefficient} if priced else {})

    def carried(self, step: int) -> Arrays:
        number, within = divmod(step, self.schedule.steps_per_round)
        held = self._round
        return held.arrays if within and held is not None and held.number == number else {}

    def before(self, step: int, attend: Callable[[], bool]) -> dict[str, float] | Instead:
        number, within = divmod(step, self.schedule.steps_per_round)
        said: dict[str, float] = {}
        if self._round is None or self._round.number != number:
            self._round = None  # its memory is the next one's
            if within:
                self._round = self._continued(number, step)
            else:
                try:
                    self._round, said = self._begin(number, step, attend)
                except _Stopped:
                    return Instead.END
        return said if self._round.steps else Instead.PASS

    def micro_batches(self, start: int) -> Iterator[MicroBatch]:
        each = self.schedule.steps_per_round
        while start < self.total_steps:
            held = self._round
            assert held is not None and held.number >= start // each, "`before` has made it ready"
            start = max(start, held.number * each)  # those before it were passed over
            end = min((held.number + 1) * each, self.total_steps)
            works = (
                planned(self._engine, self._config, self.objective, held.texts, held.steps[step % each])
                for step in range(start, end)
            )
            yield from micro_batches(works, self._engine.device)
            start = end

    def evaluate(self, step: int, attend: Callable[[], bool]) -> tuple[dict[str, float], None] | None:
        """One response to each of the first held-out prompts, of several sources in their proportion; the same seeds
        each time."""
        asked = first_of_each(self.held_out, self._rollouts.eval_prompts)
        prompts = [self.held_out.pair(int(i))[0] for i in asked]
        requests = self._requests("held out", prompts, 1)
        writers = self._writers
        try:
            written = self._written(step, self.held_out, asked, requests, None, attend)
        except _Stopped:
            return None
        chosen = [i for i, scored in enumerate(written.scored) if scored.score is not None]
        line = self._told(written)
        texts = Rollouts([prompts[i] for i in chosen], [[ids_of(written.samples[i])] for i in chosen], {})
        if chosen:
            where = f"evaluation of step {step}"
            old, reference, *_ = self._given(texts, where, self.held_out, [int(asked[i]) for i in chosen])
            lengths = np.array([len(written.samples[i].ids) for i in chosen])
            line |= {"kl": float(response_totals(old - reference, lengths).mean()), "entropy": float(-old.mean())}
        if writers is not None:
            writers.show(step, self.held_out, asked, written.samples, written.scored)
        names = ("reward", "kl", "response_tokens", "share_cut", "entropy", "not_finite", "too_long")
        wanted = {name: line[name] for name in line if name.partition("/")[0] in names}
        return {f"eval_{name}": value for name, value in wanted.items()}, None

    def _begin(self, number: int, step: int, attend: Callable[[], bool]) -> tuple[Round, dict[str, float]]:
        """Draw, score and credit a round. Raises `_Stopped` on all ranks where `attend` says so."""
        rollouts, objective = self._rollouts, self._config.objective
        places = self.schedule.indices(number)
        prompts = [self.train.pair(int(i))[0] for i in places]
        requests = self._requests(f"round {number}", prompts, rollouts.samples)
        written = self._written(step, self.train, places, requests, number, attend)
        said = {"round": float(number), **self._told(written)}
        scores = learned_scores(
            [one.score for one in written.scored],
            [sample.ended == "length" for sample in written.samples],
            rollouts,
        )
        if self._writers is not None:
            self._files.forget_before(lambda: self.schedule.round_of(self._oldest()))
        begins = np.array([step, self.schedule.steps_per_pass, self.schedule.passes])
        groups, needed = groups_of(written, scores), self.schedule.steps_per_pass
        if objective.name != "ppo":
            groups = {prompt: members for prompt, members in groups.items() if len(members) > 1}
        if len(groups) < needed:
            raise UserError(
                f"round {number}: {len(groups)} of {len(prompts)} prompts have responses whose scores can be trained "
                f"on, and {needed} steps need one each: {said['too_long']:.0f} responses are too long for a reward "
                f"model, {said['not_finite']:.0f} scores are not finite"
            )
        if isinstance(objective, OnlineConfig):
            scored, groups = len(groups), differing(groups, written, scores)
            said["alike"] = float(scored - len(groups))
            if len(groups) < needed:
                self._pass_over(f"round {number}: best and worst differ of {len(groups)} of {len(prompts)} prompts")
                return self._round_of(number, {"begins": begins}), said
        self._passed = 0
        records, members = list(groups), [member for group in groups.values() for member in group]
        responses = [[ids_of(written.samples[member]) for member in group] for group in groups.values()]
        texts = Rollouts([prompts[place] for place in records], responses, {})
        old, reference, *critic = self._given(texts, f"round {number}", self.train, places[records].tolist())
        values = critic[0] if critic else None
        lengths = np.array([len(written.samples[member].ids) for member in members])
        engine = np.concatenate([written.samples[member].logps for member in members])
        learned, kl = scores[members], response_totals(old - reference, lengths)
        said |= {
            "reward": float(learned.mean()), "reward_sd": float(learned.std()), "kl": float(kl.mean()),
            "entropy": float(-old.mean()), **mismatch(old, engine),
        }  # fmt: skip
        self._tell_apart(number, said)
        counts = np.array([len(group) for group in groups.values()])
        arrays: Arrays
        if isinstance(objective, PolicyGradientSection):
            coefficient = self._coefficient
            columns = token_columns(
                objective, scores=learned, lengths=lengths, samples=counts, old_logps=old, reference_logps=reference,
                engine_logps=engine, coefficient=coefficient, importance_cap=rollouts.importance_cap, values=values,
            )  # fmt: skip
            said["kl_coefficient"] = coefficient
            if values is not None:
                said["explained_variance"] = explained_variance(values, columns["returns"])
            if objective.kl_target is not None:
                self._coefficient = adapted(
                    coefficient, float(kl.mean()), objective.kl_target, objective.kl_horizon, len(members)
                )
            arrays = {str(name): column.astype(np.float32) for name, column in columns.items()}
        else:
            assert isinstance(objective, OnlineConfig)
            arrays = {"reference": response_totals(reference, lengths).astype(np.float32), "scores": learned}
        arrays |= {
            "begins": begins, "records": places[records], "counts": counts, "lengths": lengths,
            "ids": np.concatenate([ids_of(written.samples[member]) for member in members]),
        }  # fmt: skip
        return self._round_of(number, arrays), said

    def _pass_over(self, why: str) -> None:
        """Have a round's steps count as done. Raises `UserError` after more than `train.max_skipped_steps` in a row."""
        why += f", and {self.schedule.steps_per_pass} steps need one each"
        most = self._config.train.max_skipped_steps
        if self._passed == most:
            before = f"after {most} such rounds that were passed over" if most else "none may be passed over"
            raise UserError(
                f"{why}; {before} (train.max_skipped_steps): what it answers is nearly always the same; try a higher "
                "rollouts.temperature, more rollouts.samples, or the model of an earlier step"
            )
        self._passed += 1
        if self._writers is not None:
            self._writers.note(f"{why}: it is passed over")

    def _tell_apart(self, number: int, said: dict[str, float]) -> None:
        """Where engine and trainer differ by more than their dtype explains, which is said once."""
        name, bound = _APART[self._config.model.dtype]
        if said[name] > bound and not self._told_apart and self._writers is not None:
            self._told_apart = True
            self._writers.note(
                f"round {number}: the engine's log-probs are not the trainer's: {name} is {said[name]:.2g} nats, and "
                f"{self._config.model.dtype} explains {bound:.2g}; ratios are off by as much (rollouts.importance_cap "
                "weighs it)"
            )

    def _continued(self, number: int, step: int) -> Round:
        """The round that the checkpoint of `step` is in the middle of."""
        begins = number * self.schedule.steps_per_round
        cut = [begins, self.schedule.steps_per_pass, self.schedule.passes]
        if "begins" not in self._carried or self._carried["begins"].tolist() != cut:
            raise UserError(
                f"the checkpoint of step {step} is in the middle of a round, and with these settings "
                "(rollouts.prompts, rollouts.epochs, train.global_batch_size) rounds begin elsewhere or are cut "
                "otherwise; they may change between two rounds alone"
            )
        return self._round_of(number, self._carried)

    def _round_of(self, number: int, arrays: Arrays) -> Round:
        pairs = isinstance(self._config.objective, OnlineConfig)
        return Round.of(number, arrays, self.train, self.schedule, pairs=pairs)

    def _requests(self, what: str, prompts: Sequence[Ids], samples: int) -> list[Request]:
        seed = self._config.seed
        return [
            Request(place, sample, ids.tolist(), request_seed(seed, what, place, sample))
            for place, ids in enumerate(prompts)
            for sample in range(samples)
        ]

    def _written(
        self,
        step: int,
        data: Prompts,
        records: NDArray[np.int64],
        requests: list[Request],
        number: int | None,
        attend: Callable[[], bool],
    ) -> Written:
        """What the policy of `step` answers to `requests`, and what that scores, on all ranks. `number`: of the round,
        whose samples are kept on disk as they come. Raises `_Stopped` on all ranks where `attend` says so."""
        writers, taken = self._writers, self._taken(step)
        let_go(self._engine.device)

        def write() -> Written:
            assert writers is not None
            if taken:  # out of the list: nobody holds them while they are drawn by
                self._weights = writers.load(taken.pop(), step)
            digest = self._drawn_by(self._weights, requests)
            held = [] if number is None else self._files.samples(number, digest)
            wanted = {(request.prompt, request.round): request for request in requests}
            found = {(one.prompt, one.sample): one for one in held if (one.prompt, one.sample) in wanted}
            if number is not None:
                self._files.begin(number, digest, found.values())
            started = time.monotonic()
            for new in writers.draw([request for place, request in wanted.items() if place not in found]):
                if number is not None:
                    self._files.append(number, new)
                found |= {(one.prompt, one.sample): one for one in new}
                if self._over.is_set():
                    raise _Stopped
            drawn = time.monotonic()
            samples = [found[place] for place in wanted]
            scored = writers.score(data, records, samples)
            return Written(samples, scored, drawn - started, time.monotonic() - drawn)

        return self._by_rank_0(write, attend)

    def _taken(self, step: int) -> list[StateDict]:
        """On rank 0 the policy's weights, which is at `step`; nothing where the engines have them."""
        if step == self._sent:
            return []
        self._sent = step
        weights = self._engine.weights()
        return [] if weights is None else [weights]

    def _drawn_by(self, weights: str, requests: list[Request]) -> str:
        """Digest of all that decides what is drawn: another run's responses under the same name are nothing to this."""
        rollouts = self._rollouts
        asked = [weights, rollouts.temperature, rollouts.max_tokens, self._config.data.chat_template, requests]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _by_rank_0(self, work: Callable[[], _Result], attend: Callable[[], bool]) -> _Result:
        """What `work` returns on rank 0, on all ranks. They meet now and then while it lasts, and `attend` to what else
        there is: nobody hangs. Raises `_Stopped` where that says so, or has said so before; `work` ends by itself."""
        if self._over.is_set():
            raise _Stopped
        running: Future[_Result] | None = self._thread.submit(work) if self._writers is not None else None
        while not self._engine.broadcast(_is_done(running)):
            if attend():
                self._over.set()
                raise _Stopped
        found: _Result | UserError | None = None
        try:
            found = running.result() if running is not None else None
        except UserError as error:
            found = error
        found = self._engine.broadcast(found)
        if isinstance(found, UserError):
            raise type(found)(str(found))
        return found  # type: ignore[return-value]

    def _given(self, texts: Rollouts, where: str, data: Prompts, records: Sequence[int]) -> tuple[Floats, ...]:
        """See `by_token`. `records`: of `data`, that the rows of `texts` are responses to."""
        names = [data.record(record) for record in records]
        return by_token(self._engine, self._config, self._reference, texts, where, names)

    def _told(self, written: Written) -> dict[str, float]:
        """What is said of responses before the policy is asked about them."""
        tokens = sum(len(sample.ids) for sample in written.samples)
        scores = [one.score for one in written.scored if one.score is not None]
        said = {
            "reward": float(np.mean(scores)) if scores else float("nan"),
            "response_tokens": tokens / len(written.samples),
            "share_cut": sum(sample.ended == "length" for sample in written.samples) / len(written.samples),
            "rollout_seconds": written.seconds,
            "scoring_seconds": written.scoring_seconds,
            "rollout_tokens_per_second": tokens / max(written.seconds, 1e-9),
            "score_tokens_per_second": tokens / max(written.scoring_seconds, 1e-9),
        }
        return said | reward_metrics(written.scored)


def _is_done(running: Future[_Result] | None) -> bool:
    """Whether it is, after a moment's waiting."""
    if running is None:
        return False
    try:
        running.exception(timeout=_PATIENCE)
    except TimeoutError:
        return False
    return True
