"""The stage of an evaluation in which judges read the answers: every call that is missing is made, and kept at once.

What comes of it is a function of the verdicts that are kept, in the order of the answers and not of arrival.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orpo_ray.config import EvaluationConfig
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cluster import Nodes, Resources, share_out
from orpo_ray.evaluation.cpu_engine import lacks_on_cpu
from orpo_ray.evaluation.judged import Judged, judged
from orpo_ray.evaluation.progress import answer, counting
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.inference.generation import Request, Response
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.judging.asking import VERSION, Asked
from orpo_ray.judging.budget import estimated_tokens, forecast, require_within
from orpo_ray.judging.judges import Judge, LocalJudge, ServedJudge, find_judges
from orpo_ray.judging.places import Answered, places
from orpo_ray.judging.prompts import JudgePrompt
from orpo_ray.judging.reading import read
from orpo_ray.judging.servers import Account, Call, Server, ask_all, key_of
from orpo_ray.judging.store import VerdictStore
from orpo_ray.judging.verdict import Verdict
from orpo_ray.terminal import Console

__all__ = ["Answered", "JudgingPlan", "judge", "plan_judging"]


@dataclass(frozen=True)
class JudgingPlan:
    """Who judges, and by which prompt; see `plan_judging`."""

    prompt: JudgePrompt
    judges: dict[str, Judge]

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that decide the verdicts on given answers, for a hash."""
        judges = {label: each.identity for label, each in self.judges.items()}
        return {"version": VERSION, "prompt": self.prompt.digest, "judges": judges}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What is named beside the numbers of each judge."""
        prompt = {"prompt": self.prompt.name, "prompt_digest": self.prompt.digest}
        return {label: {**each.describe(), **prompt} for label, each in self.judges.items()}

    def require_keys(self) -> None:
        """Raises `UserError` where the environment lacks the key of a server: better before hours of generation."""
        for label, each in self.judges.items():
            if isinstance(each, ServedJudge):
                key_of(label, each.config)


def plan_judging(config: EvaluationConfig) -> JudgingPlan | None:
    """None: nobody judges in words. Raises `UserError` for judges and prompts that the user has to mend."""
    if not config.judges:
        return None
    return JudgingPlan(JudgePrompt(config.judging, config.prompts.turns), find_judges(config))


def judge(
    config: EvaluationConfig,
    plan: JudgingPlan,
    answered: Answered,
    folder: EvaluationFolder,
    console: Console,
    *,
    resources: Resources | None = None,
) -> Judged:
    """Ask each judge for what it has not said yet. `resources`: of engines; default: what the cluster has.

    A driver that is killed goes on where it was. Raises `UserError`, with nothing sent, where that would take more than
    `max_calls` or `max_tokens_total` of a judge, and where calls of a server get no answer.
    """
    found = list(places(config.judging, plan.prompt, answered))
    store = VerdictStore(folder.verdicts)
    keys = {
        label: [None if asked is None else asked.key(identity) for _, asked in found]
        for label, identity in ((label, each.identity) for label, each in plan.judges.items())
    }
    served: list[tuple[ServedJudge, list[Call]]] = []
    local: list[tuple[LocalJudge, dict[str, Request], dict[str, Asked]]] = []
    for label, each in plan.judges.items():
        missing = {
            key: asked
            for key, (_, asked) in zip(keys[label], found, strict=True)
            if key is not None and asked is not None and key not in store.found
        }
        if isinstance(each, ServedJudge):
            missing = _without_former(each, missing, store)
            served.append((each, _calls(each, missing, console)))
        else:
            requests = {key: each.request(number, asked) for number, (key, asked) in enumerate(missing.items())}
            fitting = {key: request for key, request in requests.items() if each.fits(request)}
            known = any(key in store.found for key in keys[label] if key)
            if len(fitting) < len(requests) and (fitting or not known):  # else it was said when the others were asked
                _say_too_long(each, requests.values(), len(fitting), console)
            local.append((each, fitting, missing))
    answering = {label for label in plan.judges if any(key in store.found for key in keys[label] if key)}
    for each, _ in served:
        _say_elsewhere(each, [store.found[key] for key in set(keys[each.label]) if key in store.found], console)
    _ask_servers(config, served, answering, store, console)
    _ask_engines(config, [each for each in local if each[1]], store, resources, console)
    verdicts = {label: [None if key is None else store.found.get(key) for key in keys[label]] for label in plan.judges}
    servers = {label: each.config.base_url for label, each in plan.judges.items() if isinstance(each, ServedJudge)}
    return judged(
        [(place, asked is None) for place, asked in found], verdicts, answered, config.judging.repeats, servers
    )


def _say_too_long(judge: LocalJudge, requests: Collection[Request], fitting: int, console: Console) -> None:
    """Raises `UserError` where nothing fits: there would be numbers of a judge that has said nothing."""
    context, own = judge.model.context, judge.sampling.max_tokens
    if fitting:
        told = f"{len(requests) - fitting:,} of {len(requests):,} judgements are too long for its context"
        console.say(f"judge {judge.label}: {told} of {context:,} tokens")
        return
    shortest = min(len(request.ids) for request in requests)
    raise UserError(
        f"judges.{judge.label}: none of {len(requests):,} judgements fits its context of {context:,} tokens: the "
        f"shortest is asked with {shortest:,}, beside {own:,} for its answer; choose a judge of a longer context. The "
        "answers are kept"
    )


def _without_former(judge: ServedJudge, missing: Mapping[str, Asked], store: VerdictStore) -> dict[str, Asked]:
    """`missing` without what an earlier version has asked at the same address, which is then found by its new key."""
    known = {key: store.found.get(asked.key(judge.former_identity)) for key, asked in missing.items()}
    for key, verdict in known.items():
        if verdict is not None:
            store.found[key] = replace(verdict, key=key, server=judge.config.base_url)
    return {key: asked for key, asked in missing.items() if known[key] is None}


def _calls(judge: ServedJudge, missing: Mapping[str, Asked], console: Console) -> list[Call]:
    """With what they will cost said. Raises `UserError` where that is too much."""
    if not missing:
        return []
    config = judge.config
    expected = forecast(list(missing.values()), judge.answer_tokens, judge.count)
    require_within(judge.label, config, expected)
    minutes = expected.calls / config.calls_per_minute if config.calls_per_minute else None
    pace = "" if minutes is None else f"; {math.ceil(minutes):,} minutes at {config.calls_per_minute:g} calls a minute"
    console.say(f"judge {judge.label} ({config.model} at {config.base_url}): {expected}{pace}")
    count = judge.count or estimated_tokens
    return [Call(key, asked, count(asked) + judge.answer_tokens) for key, asked in missing.items()]


def _say_elsewhere(judge: ServedJudge, known: Sequence[Verdict], console: Console) -> None:
    """Before anything is asked: whoever meant another model of that name can still stop."""
    others = Counter(each.server for each in known if each.server and each.server != judge.config.base_url)
    if others:
        places = ", ".join(f"{count} at {address}" for address, count in sorted(others.items()))
        console.say(
            f"judge {judge.label}: {others.total()} verdicts of {judge.config.model} are there already, given elsewhere"
            f" ({places}); another model needs another name"
        )


def _ask_servers(
    config: EvaluationConfig,
    served: list[tuple[ServedJudge, list[Call]]],
    answering: set[str],
    store: VerdictStore,
    console: Console,
) -> None:
    """`answering`: judges that have given verdicts here before."""
    wanted = [(judge, calls) for judge, calls in served if calls]
    if not wanted:
        return
    servers = [
        Server(
            judge.label, judge.config, judge.answer_tokens, console.say, has_answered=judge.label in answering
        )
        for judge, _ in wanted
    ]  # fmt: skip
    bars = {judge.label: (f"verdicts of {judge.label}", len(calls)) for judge, calls in wanted}
    with counting(config.name, bars, console) as count:

        def keeper(judge: ServedJudge) -> Callable[[Verdict], None]:
            def keep(verdict: Verdict) -> None:
                store.keep(judge.label, replace(verdict, server=judge.config.base_url))
                count(judge.label, 1)

            return keep

        try:
            asyncio.run(ask_all([
                (server, calls, keeper(judge)) for server, (judge, calls) in zip(servers, wanted, strict=True)
            ]))  # fmt: skip
        finally:
            for server, (judge, _) in zip(servers, wanted, strict=True):
                if told := _told(server.account):
                    console.say(f"judge {judge.label}: {told}")


def _told(account: Account) -> str:
    """What did not go by itself; empty: all did."""
    parts = [f"{count} of {why}" for why, count in sorted(account.again.items())]
    again = f"{account.again.total()} calls were lost, and made again: {', '.join(parts)}" if parts else ""
    refused = f"{account.refused} calls were refused by the server" if account.refused else ""
    return "; ".join(filter(None, (again, refused)))


def _ask_engines(
    config: EvaluationConfig,
    local: list[tuple[LocalJudge, dict[str, Request], dict[str, Asked]]],
    store: VerdictStore,
    resources: Resources | None,
    console: Console,
) -> None:
    if not local:
        return
    questions = JudgeQuestions(local, store)
    calls = sum(len(requests) for _, requests, _ in local)

    def share(nodes: Nodes) -> Resources:
        given = resources or share_out(config.scaling, nodes, most=math.ceil(calls / _LEAST), scoring=False)
        for judge, _, _ in local:
            if given.gpu_memory is None and (lack := lacks_on_cpu(judge.model)):
                raise UserError(
                    f"{judge.model.key}: vLLM has no {lack} on a CPU: {judge.model.name}; use GPUs, or a judge behind "
                    "a server"
                )
        return given

    def describe(given: Resources) -> str:
        tokens = {judge.label: sum(len(each.ids) for each in requests.values()) for judge, requests, _ in local}
        told = [
            f"{judge.label}: {len(requests):,} calls, {tokens[judge.label]:,} tokens of prompts"
            for judge, requests, _ in local
        ]
        return f"{config.name}: judges: {'; '.join(told)}; {given.generators} vLLM engines"

    with counting(config.name, {"responses": ("verdicts", calls)}, console) as count:

        def progress(responses: int = 0, **_: Any) -> None:
            count("responses", responses)

        answer(config, questions, None, [judge.model for judge, _, _ in local], share, describe, progress, console)


_LEAST = 32  # calls that an engine is worth starting for


class JudgeQuestions:
    """What engines are asked where judges are their models; see `pipeline.Questions`."""

    def __init__(
        self, local: list[tuple[LocalJudge, dict[str, Request], dict[str, Asked]]], store: VerdictStore
    ) -> None:
        """`local`: judges with their requests and what was asked, by key."""
        self._store = store
        self.models = {judge.label: _answering(judge, requests.values()) for judge, requests, _ in local}
        self.todo = {judge.label: deque(requests.values()) for judge, requests, _ in local}
        self._open = {
            judge.label: {request.prompt: (key, asked[key], len(request.ids)) for key, request in requests.items()}
            for judge, requests, asked in local
        }

    @property
    def finished(self) -> bool:
        return not any(self._open.values())

    def receive(self, label: str, responses: list[Response]) -> None:
        for response in responses:
            key, asked, prompt_tokens = self._open[label].pop(response.prompt)
            probability, rating = read(asked, response.text, response.likely)
            self._store.keep(label, Verdict(key, probability, rating, response.text, prompt_tokens, response.tokens))


@dataclass(frozen=True)
class _Answering:
    """A judge, as its engine has to know it; see `pipeline.Answering`."""

    model: EvaluatedModel
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]
    max_length: int
    top_tokens: int
    engine: str = "vllm"


def _answering(judge: LocalJudge, requests: Iterable[Request]) -> _Answering:
    longest = max(len(request.ids) for request in requests)
    sampling = judge.sampling
    return _Answering(judge.model, sampling, judge.stop_ids, longest + sampling.max_tokens, judge.top_tokens)
