"""What a reader of an evaluation's results, or of scores, must know of how they came about, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orpo_ray.config import EvaluationConfig
from orpo_ray.data.prompts import Prompt
from orpo_ray.data.records import Account
from orpo_ray.evaluation.given import GivenWork
from orpo_ray.inference.listening import Listener
from orpo_ray.inference.speaking import Speaker
from orpo_ray.visible import visible

if TYPE_CHECKING:
    from orpo_ray.evaluation.plan import PolicyWork


def notes_of(
    config: EvaluationConfig, prompts: list[Prompt], account: Account, policies: dict[str, PolicyWork],
    given: dict[str, GivenWork], listeners: dict[str, Speaker],
) -> list[str]:  # fmt: skip
    """What is said aloud: records left out, and models that are spoken to in different ways."""
    notes = of_records(account)
    said = {label: work.speaker for label, work in policies.items()} | listeners
    notes += [f"{label}: {remark}." for label, speaker in said.items() for remark in speaker.remarks]
    ways = {label: _way(work.speaker) for label, work in policies.items()}
    if len(set(ways.values())) > 1:
        told = "; ".join(f"{label}: {way}" for label, way in ways.items())
        notes.append(f"The models are spoken to in different ways, each as it was trained ({told}).")
    for label, speaker in listeners.items():
        way = _way(speaker, bos=False)
        other = [name for name, work in policies.items() if _way(work.speaker, bos=False) != way]
        if other:
            notes.append(
                f"The reward model {label} reads text in another form than {', '.join(other)} wrote it in ({way})."
            )
    notes += from_elsewhere(listeners, generated=True)
    most = max([*(work.rounds for work in policies.values()), *(work.rounds for work in given.values())])
    for outputs in given.values():
        notes += outputs.remarks
        if outputs.rounds < most:
            label = outputs.label
            notes.append(f"The file of {label} has one answer to a prompt, which stands in each of {most} rounds.")
    if unmet := config.sampling.by_category.keys() - {prompt.category for prompt in prompts}:
        notes.append(f"No prompt is of the category {visible(', '.join(sorted(unmet)))} (sampling.by_category).")
    if config.prompts.turns > 1 and listeners:
        notes.append(f"Reward models judge the answers of turn {config.prompts.turns}, with the conversation in view.")
    for label, work in policies.items():
        missing = work.fits.count(False)
        if missing:
            notes.append(
                f"{label} did not answer {missing} prompts: they do not fit its context of {work.model.context} tokens "
                "beside sampling.max_tokens. They count in none of its comparisons."
            )
    return notes


def of_records(account: Account) -> list[str]:
    """What became of the records that prompts were read from."""
    notes = left_out(account, "are no prompt")
    if account.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in account.dropped.most_common())
        notes.append(
            f"{account.dropped.total()} of {account.read} records prefer neither answer and were left out: {reasons}."
        )
    return notes + [f"Of the prompts: {remark}." for remark in account.remarks()]


def left_out(account: Account, why: str) -> list[str]:
    """Notes on records that were set aside."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in account.quarantined.most_common())
    count = account.quarantined.total()
    return [f"{count} of {account.read} records {why} and were left out: {reasons}."] if count else []


def from_elsewhere(listeners: Mapping[str, Speaker], *, generated: bool) -> list[str]:
    """Notes on reward models that were not trained here. `generated`: answers may have been cut."""
    notes = []
    for label, speaker in listeners.items():
        if not isinstance(speaker, Listener):
            continue
        through = speaker.wants_messages
        reads = "whole conversations as its chat template writes them" if through else "text as its tokenizer takes it"
        closed = "; an answer that max_tokens cut is closed like any other" if through and generated else ""
        notes.append(
            f"The reward model {label} was not trained here: it reads {reads}, and is scored where transformers' own "
            f"classifiers are{closed}."
        )
    return notes


def _way(speaker: Speaker, *, bos: bool = True) -> str:
    form = (
        f"chat template {speaker.template}"
        if speaker.wants_messages
        else f"text as it stands, chat template {speaker.template}"
    )
    return form + (("" if speaker.bos is not None else ", no BOS") if bos else "")
