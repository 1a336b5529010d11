"""What models answered in all turns, as judges in words and benchmarks take it."""

from __future__ import annotations

from orpo_ray.config import EvaluationConfig
from orpo_ray.config.evaluation import OutputsConfig
from orpo_ray.data.outputs import read_outputs
from orpo_ray.data.prompts import Prompt, readable
from orpo_ray.errors import UserError
from orpo_ray.evaluation.plan import EvaluationPlan
from orpo_ray.evaluation.turns import answers_so_far
from orpo_ray.judging.places import Answered

References = list[list[str] | None]
"""Of each prompt the reference answer of each turn; None: it has none."""


def read_references(config: EvaluationConfig, prompts: list[Prompt]) -> tuple[References, list[str]]:
    """Of `judging.references`, and what is to be noted of them: only some prompts may have one, as in MT-Bench.

    Raises `UserError`, naming the key and the record, as `read_outputs` does.
    """
    if config.judging.references is None or not config.judges:
        return [None] * len(prompts), []
    try:
        asked = OutputsConfig(outputs=config.judging.references)
        found = read_outputs(asked, prompts, config.prompts, may_have_none=True)
    except UserError as error:
        raise UserError(f"judging.references: {error}") from None
    references = [list(rounds[0]) if rounds else None for rounds in found.answers]
    there = sum(each is not None for each in references)
    notes = [f"The file of judging.references {remark}." for remark in found.remarks]
    if there < len(prompts):
        notes.append(f"Judges are shown a reference answer to {there} of {len(prompts)} prompts.")
    return references, notes


def answered(plan: EvaluationPlan, references: References) -> Answered:
    """Of a plan whose last turn is answered."""
    turns = plan.config.prompts.turns
    return Answered(
        questions=[
            [readable(prompt.as_found.prompt), *prompt.as_found.further[: turns - 1]] for prompt in plan.prompts
        ],
        answers={
            label: [[list(said) or None for said in rounds] for rounds in answers_so_far(plan, label)]
            for label in plan.answering
        },
        references=references,
    )
