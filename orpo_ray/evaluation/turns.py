"""Conversations of several turns: what a model is asked next, behind its own answers (MT-Bench).

A turn is a plan of its own, made when every answer to the one before is there, and its pieces lie in a folder of their
own. So engines start once for each turn, and an interrupted turn goes on like any other. Left out on purpose: asking
each prompt further as soon as it is answered, which would keep engines fuller for a few minutes of a whole MT-Bench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orpo_ray.data.prompts import Prompt
from orpo_ray.evaluation.plan import EvaluationPlan, PolicyWork, fits_context, judged_at_last, seeds
from orpo_ray.evaluation.store import RESPONSES, EvaluationFolder, Pieces, content_key
from orpo_ray.inference.speaking import ids_of

Said = tuple[str, ...]
"""A model's answers to each turn so far, up to the first that is missing."""


def furthest(plan: EvaluationPlan) -> EvaluationPlan:
    """The plan of the last turn for which all answers before are there already."""
    while not plan.last and _is_answered(plan):
        plan = next_turn(plan)
    return plan


def next_turn(plan: EvaluationPlan) -> EvaluationPlan:
    """What is asked when all of `plan` is answered. Raises `UserError`, naming the record, where a model's template
    refuses a conversation."""
    turn = plan.turn + 1
    folder = plan.folder.of_turn(turn)
    said = {label: answers_so_far(plan, label) for label in plan.answering}
    policies = {label: _asked_further(work, folder, turn, plan.prompts, said[label])
                for label, work in plan.policies.items()}  # fmt: skip
    given = {label: work.next_turn(folder, _conversations(plan.prompts, said[label], turn))
             for label, work in plan.given.items()}  # fmt: skip
    notes = [note for work in policies.values() for note in _notes(work, turn)]
    further = replace(
        plan, policies=policies, given=given, seeds=seeds(plan.config, plan.prompts, turn),
        notes=plan.notes + notes, earlier=(*plan.earlier, plan),
    )  # fmt: skip
    return judged_at_last(further)


def _is_answered(plan: EvaluationPlan) -> bool:
    return all(work.responses.has(block) for work in plan.answering.values() for block in range(len(plan.blocks)))


def answers_so_far(plan: EvaluationPlan, label: str) -> list[list[Said]]:
    """What a model has answered, as it is judged, through the turn of `plan`, all of which is answered:
    `(prompts, rounds)`, of answers from elsewhere as many rounds as there are."""
    rounds = range(plan.answering[label].rounds)
    found: list[list[Said]] = [[() for _ in rounds] for _ in plan.prompts]
    for each in (*plan.earlier, plan):  # without an answer there is none to the turns after it
        work = each.answering[label]
        for row in (row for block in range(len(each.blocks)) for row in work.responses.read(block)):
            if row["text"] is not None:
                of_prompt = found[row["prompt"]]
                of_prompt[row["round"]] += (work.answer(plan.prompts[row["prompt"]], row).text,)
    return found


def _conversations(prompts: Sequence[Prompt], said: list[list[Said]], turn: int) -> list[list[Prompt | None]]:
    return [
        [prompt.after(answers) if len(answers) == turn - 1 else None for answers in of_prompt]
        for prompt, of_prompt in zip(prompts, said, strict=True)
    ]


def _asked_further(
    work: PolicyWork, folder: EvaluationFolder, turn: int, prompts: Sequence[Prompt], said: list[list[Said]]
) -> PolicyWork:
    conversations = _conversations(prompts, said, turn)
    most = [work.sampling.of(prompt.category).max_tokens for prompt in prompts]
    later: list[list[list[int] | None]] = []
    for of_prompt, tokens in zip(conversations, most, strict=True):
        ids = [None if each is None else ids_of(work.speaker, each) for each in of_prompt]
        later.append([each if each and fits_context(work.model, each, tokens) else None for each in ids])
    lengths = [len(ids) + tokens for of_prompt, tokens in zip(later, most, strict=True) for ids in of_prompt if ids]
    key = content_key(
        before=work.responses.folder.name, said=said, asked=[prompt.as_found.further[turn - 2] for prompt in prompts],
    )  # fmt: skip
    return replace(
        work, conversations=conversations, later=later, max_length=max(lengths, default=work.max_length),
        responses=Pieces(folder.responses, work.label, key, RESPONSES),
    )  # fmt: skip


def _notes(work: PolicyWork, turn: int) -> list[str]:
    assert work.conversations is not None and work.later is not None
    pairs = [pair for asked, ids in zip(work.conversations, work.later, strict=True)
             for pair in zip(asked, ids, strict=True)]  # fmt: skip
    missing = sum(asked is not None and ids is None for asked, ids in pairs)
    if not missing:
        return []
    return [
        f"{work.label} was not asked turn {turn} in {missing} conversations: they do not fit its context of "
        f"{work.model.context} tokens beside sampling.max_tokens. They count in none of its comparisons."
    ]
