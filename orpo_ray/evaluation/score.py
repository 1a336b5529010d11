"""`orpo-ray score`: rewards of responses that are there, by any reward model, and how often it finds the better one.

It is an evaluation without policies: the same plan, pieces, scorers and loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_ray.config import ScoreConfig
from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.config.kinds import held_for
from orpo_ray.data.records import Account
from orpo_ray.data.responses import Responses, read_responses
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cluster import Nodes, Resources, scorers_alone
from orpo_ray.evaluation.notes import from_elsewhere, left_out
from orpo_ray.evaluation.plan import (
    OWN,
    Plan,
    cut_into_blocks,
    find_reward_models,
    judge_works,
)
from orpo_ray.evaluation.progress import complete
from orpo_ray.evaluation.scores import scores_table, summary
from orpo_ray.evaluation.store import ScoreFolder, content_key
from orpo_ray.inference.listening import listener
from orpo_ray.inference.scoring import require_known
from orpo_ray.inference.speaking import Speaker, prompt_ids
from orpo_ray.parsing import read_object
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.storage.run_folder import write_atomically, write_table
from orpo_ray.terminal import Console
from orpo_ray.visible import visible

RESPONSE = "response"
"""The label of a response of which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class ScorePlan(Plan):
    config: ScoreConfig
    folder: ScoreFolder
    records: list[Responses]


def score(config: ScoreConfig, console: Console | None = None, *, wait: bool = False) -> ScoreFolder:
    """Score as `config` says, or go on where an earlier try stopped; returns the folder.

    Raises `UserError` as `evaluate.evaluate` does.
    """
    console = console or Console(stderr=True)
    plan = make_score_plan(config)
    require_known({label: judge.model for label, judge in plan.judges.items()}, plan.prompts)
    folder = plan.folder
    key = content_key(
        rewards=[name for judge in plan.judges.values() for name in judge.rewards.names],
        notes=plan.notes, subset=config.subset,
        columns=[[record.index, record.columns] for record in plan.records],
    )  # fmt: skip
    if _is_finished(folder, key):
        console.say(f"{folder.path}: already finished")
        return folder
    with only_driver(folder.path, console, wait=wait):
        held_for("scores", folder.config)
        folder.summary.unlink(missing_ok=True)  # of other settings than those that config.yaml is to say
        write_atomically(folder.config, config.to_yaml())
        write_atomically(folder.account, json.dumps({**vars(plan.account), "blocks": len(plan.blocks)}) + "\n")
        for note in plan.notes:
            console.say(f"note: {note}")
        complete(plan, lambda nodes: _share(plan, nodes), lambda given: _described(plan, given), console)
        rewards = rewards_of(plan)
        write_table(folder.scores, scores_table(plan.records, plan.own, rewards))
        found = summary(config, plan, plan.records, rewards)
        write_atomically(folder.summary, json.dumps({"key": key, **found}, indent=1, ensure_ascii=False) + "\n")
    return folder


def make_score_plan(config: ScoreConfig, progress: Callable[[int], None] | None = None) -> ScorePlan:
    """Find and check every reward model, read the records, and say where each piece of work goes.

    Raises `UserError` for what the user has to mend, before anything is computed.
    """
    reward_models = find_reward_models(config)
    template = config.prompts.chat_template
    listeners = {label: listener(model, template) for label, model in reward_models.items() if model is not None}
    with_messages = any(each.wants_messages for each in listeners.values())
    records, account = read_responses(config.prompts, with_messages=with_messages, progress=progress)
    prompts = [record.prompt for record in records]
    for each in listeners.values():
        prompt_ids(each, prompts)
    blocks = cut_into_blocks(range(len(records)))
    folder = ScoreFolder(config.storage.run_dir(config.name))
    asked = content_key(prompts=[p.as_found.content for p in prompts], blocks=blocks)
    return ScorePlan(
        config=config, folder=folder, prompts=prompts, account=account, blocks=blocks, records=records,
        own=[_names(record) for record in records],
        judges=judge_works(config, folder.rewards, reward_models, listeners, {OWN: {}}, asked=asked),
        notes=_notes(config, records, account, listeners),
    )  # fmt: skip


def _notes(config: ScoreConfig, records: list[Responses], account: Account, listeners: dict[str, Speaker]) -> list[str]:
    """What is said aloud: records left out, what of the others is not read, and what becomes of their texts."""
    notes = left_out(account, "are no prompt with responses")
    if account.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in account.dropped.most_common())
        total = account.dropped.total()
        notes.append(f"{total} of {account.read} records prefer none of their responses and were left out: {reasons}.")
    notes += [f"Of the records: {remark}." for remark in account.remarks()]
    notes += [f"{label}: {remark}." for label, each in listeners.items() for remark in each.remarks]
    if "subset" in config.model_fields_set and not any(config.subset in record.columns for record in records):
        notes.append(f"No record has a text or a number as its {visible(config.subset)!r:.80} (subset).")
    return notes + from_elsewhere(listeners, generated=False)


def _names(record: Responses) -> list[tuple[str, int]]:
    count = len(record.prompt.as_found.completions)
    if record.chosen is None:
        return [(RESPONSE, number) for number in range(count)]
    chosen, rejected = DATA_LABELS
    return [
        (chosen, number) if number < record.chosen else (rejected, number - record.chosen) for number in range(count)
    ]


def rewards_of(plan: Plan) -> dict[str, list[list[float | None]]]:
    """By reward model and record: the reward of each response of the data; None where it is too long."""
    found = {}
    for label, judge in plan.judges.items():
        by_place = {
            (row["prompt"], row["model"], row["round"]): row["reward"]
            for block in range(len(plan.blocks))
            for row in judge.rewards.read(block)
        }
        found[label] = [[by_place[i, name, number] for name, number in names] for i, names in enumerate(plan.own)]
    return found


def read_scores(folder: ScoreFolder) -> dict[str, Any]:
    """What `scores.json` says. Raises `UserError` where it is no JSON object."""
    return read_object(folder.summary)


def _is_finished(folder: ScoreFolder, key: str) -> bool:
    """Whether the results are those of `key`; damaged ones are not, and are made again."""
    try:
        return folder.scores.is_file() and read_scores(folder).get("key") == key
    except UserError:
        return False


def _share(plan: ScorePlan, nodes: Nodes) -> Resources:
    return scorers_alone(plan.config.scaling, nodes, most=len(plan.blocks))


def _described(plan: ScorePlan, resources: Resources) -> str:
    responses = sum(map(len, plan.own))
    return (
        f"{plan.config.name}: {len(plan.prompts)} prompts with {responses} responses, {len(plan.judges)} reward "
        f"models; {resources.scorers} scorers"
    )
