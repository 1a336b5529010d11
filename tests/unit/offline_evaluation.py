"""An evaluation without a cluster: answers are made up, reward models judge in this process, through the real plan."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from orpo_ray.config import EvaluationConfig
from orpo_ray.evaluation.plan import EvaluationPlan, make_plan
from orpo_ray.evaluation.turns import next_turn
from orpo_ray.evaluation.work import Judgements, Responses
from orpo_ray.inference.generation import Request, Response
from orpo_ray.inference.scoring import Scorer

Says = Callable[[str, int, Request], str]
"""What a label answers in a turn."""


def answer(plan: EvaluationPlan, says: Says) -> Responses:
    for work in plan.given.values():
        work.keep(plan.blocks)
    responses = Responses(plan)
    for label in plan.policies:
        asked = list(responses.todo[label])
        told = [Response(each.prompt, each.round, says(label, plan.turn, each), 3, "stop") for each in asked]
        responses.receive(label, told)
    return responses


def judge(plan: EvaluationPlan, responses: Responses) -> None:
    judgements = Judgements(plan, responses)
    in_process = Scorer({label: work.model for label, work in plan.judges.items()}, None, plan.config.scoring)
    calls = SimpleNamespace(remote=in_process.rewards), SimpleNamespace(remote=in_process.log_probs)
    scorer: Any = SimpleNamespace(rewards=calls[0], log_probs=calls[1])
    while (task := judgements.next(log_probs=True)) is not None:
        judgements.receive(task, judgements.begin(scorer, task))


def complete(config: EvaluationConfig, says: Says) -> EvaluationPlan:
    """All pieces of `config`; returns the plan of its last turn."""
    plan = make_plan(config)
    while True:
        responses = answer(plan, says)
        if plan.last:
            judge(plan, responses)
            return plan
        plan = next_turn(plan)
