"""From the rewards of responses to `scores.parquet`, `scores.json` and the tables of a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from orpo_ray.config import ScoreConfig
from orpo_ray.data.prompts import readable
from orpo_ray.data.records import as_json
from orpo_ray.data.responses import Responses
from orpo_ray.evaluation.plan import TOO_LONG, JudgeWork, Plan
from orpo_ray.inference.scoring import NOT_FINITE
from orpo_ray.statistics import reward_bench
from orpo_ray.statistics.accuracy import accuracy, margin
from orpo_ray.statistics.winrate import TIE
from orpo_ray.terminal import Console

Rewards = Sequence[Sequence[float | None]]
"""Of each record, of each of its responses."""

_OURS = ("record", "location", "response", "number")


def scores_table(
    records: Sequence[Responses], own: Sequence[Sequence[tuple[str, int]]], rewards: Mapping[str, Rewards]
) -> pa.Table:
    """`scores.parquet`: a row for every response, with its record's index, place and other fields, and its rewards.

    A field that is called as one of ours gets `data.` before its name.
    """
    places = [(i, k) for i, names in enumerate(own) for k in range(len(names))]
    columns: dict[str, Any] = {
        "record": pa.array([records[i].index for i, _ in places], pa.int64()),
        "location": [records[i].prompt.location for i, _ in places],
        "response": [own[i][k][0] for i, k in places],
        "number": pa.array([own[i][k][1] for i, k in places], pa.int64()),
    }
    for key in dict.fromkeys(key for record in records for key in record.columns):
        name = f"data.{key}" if key in _OURS or key.startswith(("data.", "reward:")) else key
        columns[name] = _column([records[i].columns.get(key) for i, _ in places])
    columns |= {
        f"reward:{label}": pa.array([values[i][k] for i, k in places], pa.float64())
        for label, values in rewards.items()
    }
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    """Of one type; of several, all as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([value if value is None or isinstance(value, str) else as_json(value) for value in values])


def summary(
    config: ScoreConfig, plan: Plan, records: Sequence[Responses], rewards: Mapping[str, Rewards]
) -> dict[str, Any]:
    """`scores.json`: a function of records and rewards alone, with neither time nor machine in it."""
    notes = list(plan.notes)
    models = {}
    for label, judge in plan.judges.items():
        models[label] = _model(judge, config.subset, records, rewards[label])
        missing = models[label]["not_scored"]
        reasons = {TOO_LONG: "are too long for the reward model {}", NOT_FINITE: "have no finite reward from {}"}
        notes += [
            f"{missing[reason]} responses {said.format(label)}; their records count nowhere."
            for reason, said in reasons.items()
            if missing[reason]
        ]
    return {
        "name": config.name,
        "records": len(records),
        "responses": sum(map(len, plan.own)),
        "account": vars(plan.account),
        "tie": TIE,
        "reward_models": models,
        "notes": notes,
    }


def _model(judge: JudgeWork, field: str, records: Sequence[Responses], rewards: Rewards) -> dict[str, Any]:
    every = [value for values in rewards for value in values]
    given = np.array([value for value in every if value is not None], dtype=np.float64)
    odd = int((~np.isfinite(given)).sum())
    given = given[np.isfinite(given)]
    ranked = [i for i, record in enumerate(records) if _is_ranked(record)]
    margins = np.array([margin(rewards[i], records[i].chosen or 0) for i in ranked])
    prompts = [readable(records[i].prompt.as_found.prompt) for i in ranked]
    groups: dict[str, list[int]] = defaultdict(list)  # places within `ranked`
    for place, i in enumerate(ranked):
        if (subset := records[i].columns.get(field)) is not None:
            groups[subset if isinstance(subset, str) else as_json(subset)].append(place)
    whole = accuracy(margins, prompts) if ranked else None
    subsets = {
        name: found
        for name, places in groups.items()
        if (found := accuracy(margins[places], [prompts[place] for place in places])) is not None
    }
    return {
        "path": judge.name,
        "digest": judge.model.digest if judge.model else None,
        "template": judge.template,
        "trained_here": judge.model is None or judge.model.trained_here,
        "not_scored": {TOO_LONG: every.count(None), NOT_FINITE: odd},
        "rewards": {"mean": float(given.mean()), "sd": float(given.std()), "median": float(np.median(given))}
        if len(given) else {"mean": None, "sd": None, "median": None},
        "accuracy": whole and asdict(whole),
        "subsets": {name: asdict(found) for name, found in subsets.items()},
        "mean_of_subsets": float(np.mean([found.accuracy for found in subsets.values()])) if subsets else None,
        "reward_bench": _reward_bench(groups, [records[i] for i in ranked], [rewards[i] for i in ranked], margins),
    }  # fmt: skip


def _is_ranked(record: Responses) -> bool:
    return record.chosen is not None and 0 < record.chosen < len(record.prompt.as_found.completions)


def _reward_bench(
    groups: Mapping[str, Sequence[int]], records: Sequence[Responses], rewards: Rewards, margins: Any
) -> dict[str, Any] | None:
    """RewardBench's averages where the subsets are its own and every record is of one; else None."""
    which = reward_bench.benchmark_of(set(groups)) if sum(map(len, groups.values())) == len(records) else None
    scored = {name: [place for place in places if np.isfinite(margins[place])] for name, places in groups.items()}
    correct = {name: [bool(margins[place] > TIE) for place in places] for name, places in scored.items()}
    if which == 1:
        return reward_bench.first(correct)
    if which is None:
        return None
    tied = [
        (str(records[place].columns.get("id", "")), [value for value in rewards[place] if value is not None],
         records[place].chosen or 0)
        for place in scored.get(reward_bench.TIES, ())
    ]  # fmt: skip
    return reward_bench.second(correct, tied)


def print_scores(found: dict[str, Any], console: Console) -> None:
    """The accuracies of every reward model as a table, and RewardBench's averages where there are any."""
    header = ("reward model", "subset", "correct", "of", "ties", "accuracy", "95% interval")
    rows = [header]
    lines = []
    for label, model in found["reward_models"].items():
        if model["accuracy"] is None:
            rewards = model["rewards"]
            lines.append(
                f"{label}: nothing says which responses are the better ones; mean reward {_number(rewards['mean'])}, "
                f"sd {_number(rewards['sd'])}"
            )
            continue
        parts = {"all": model["accuracy"], **model["subsets"]}
        rows += [(label, subset, *_cells(part)) for subset, part in parts.items()]
        if model["mean_of_subsets"] is not None:
            rows.append((label, "mean of subsets", "", "", "", f"{model['mean_of_subsets']:.1%}", ""))
        if bench := model["reward_bench"]:
            named = {bench["benchmark"]: bench["score"], **(bench.get("sections") or bench["subsets"])}
            lines.append(f"{label}: " + ", ".join(f"{name} {_percent(value)}" for name, value in named.items()))
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] + lines
    for line in [*lines, *(f"note: {note}" for note in found["notes"])]:
        console.say(line)


def _cells(part: dict[str, Any]) -> tuple[str, ...]:
    low, high = part["ci95"]
    share = (f"{part['accuracy']:.1%}", f"{low:.1%} to {high:.1%}")
    return (str(part["correct"]), str(part["records"]), str(part["ties"]), *share)


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
