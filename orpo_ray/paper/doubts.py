"""Whether the judge that verdicts go by tells a better response from a worse one at all, by the data's own pairs."""

from __future__ import annotations

from orpo_ray.paper.cells import called
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.report.evaluation_words import no_better_than_a_coin


def doubt(outcomes: Outcomes, data: str, judge: str) -> str:
    """A sentence where the held-out pairs of `data` do not tell it from a coin; empty where they do."""
    return no_better_than_a_coin(called(outcomes, judge), outcomes.judge_accuracy(data, judge))


def doubts(outcomes: Outcomes) -> list[str]:
    """Of the judge of each data set that stands for one of the paper's."""
    judged = {
        own.title: doubt(outcomes, data, outcomes.stages.first_judge(data))
        for data, own in outcomes.stages.config.data.items() if own.paper is not None
    }  # fmt: skip
    return [f"{title}: {said} So no verdict goes by it." for title, said in judged.items() if said]
