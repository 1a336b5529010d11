"""A plan's work from here to its end, on the cluster, with its progress on the console."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub.constants import HF_HUB_CACHE
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from orpo_ray.cluster.connection import connect
from orpo_ray.cluster.hosts import require_on_nodes
from orpo_ray.cluster.waiting import node_places, saying_what_waits
from orpo_ray.evaluation.cluster import Nodes, Resources
from orpo_ray.evaluation.pipeline import Pipeline, Progress
from orpo_ray.evaluation.plan import Plan
from orpo_ray.evaluation.store import Parts, Pieces
from orpo_ray.evaluation.work import Judgements
from orpo_ray.terminal import Console

_SECONDS_BETWEEN_LINES = 10.0


def complete(
    plan: Plan, share: Callable[[Nodes], Resources], describe: Callable[[Resources], str], console: Console
) -> None:
    """Make every piece that is missing. `share`: of the cluster's nodes; `describe`: what is said at first.

    What finds no place on the cluster for a while is said too (see `cluster.waiting`).
    """
    if _all_there(plan):
        return
    connect(plan.config.cpus)
    resources = share(node_places())
    require_on_nodes(_local_folders(plan), resources.cpus, resources.generator_gpus)
    console.say(describe(resources))
    with _progress(plan, console) as progress:
        pipeline = Pipeline(plan, resources, progress)
        with saying_what_waits(pipeline.waiting, lambda line: console.say(f"{plan.config.name}: {line}")):
            pipeline.run()


def _local_folders(plan: Plan) -> dict[str, str]:
    """Where actors read models, by the keys that name them, but for what the Hub's own cache holds."""
    models = {f"models.{label}": work.model for label, work in plan.policies.items()}
    models |= {f"reward_models.{label}": judge.model for label, judge in plan.judges.items() if judge.model is not None}
    return {key: str(m.folder) for key, m in models.items() if not m.folder.is_relative_to(HF_HUB_CACHE)}


def _all_there(plan: Plan) -> bool:
    blocks = range(len(plan.blocks))
    pieces: list[Pieces | Parts] = [work.responses for work in plan.policies.values()]
    pieces += [judge.rewards for judge in plan.judges.values()]
    pieces += [work.log_probs for work in plan.policies.values() if work.log_probs is not None]
    return all(piece.has(block) for piece in pieces for block in blocks)


@contextmanager
def _progress(plan: Plan, console: Console) -> Iterator[Progress]:
    """Bars of responses, judged prompts and log-probs with the time left; plain lines where there is no terminal."""
    blocks = range(len(plan.blocks))
    totals = {"responses": 0, "judged": 0, "pairs": 0}
    for block in blocks:
        size = len(plan.blocks[block])
        for label, work in plan.policies.items():
            totals["responses"] += 0 if work.responses.has(block) else len(plan.requests(label, block))
            totals["pairs"] += size if work.log_probs is not None and not work.log_probs.has(block) else 0
    totals["judged"] = sum(len(plan.blocks[task.block]) for task in Judgements(plan).left)
    judged = "prompts judged, model by model" if plan.policies else "prompts judged"
    names = {"responses": "responses", "judged": judged, "pairs": "log-probs of the data's pairs"}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    done = dict.fromkeys(totals, 0)
    said = time.monotonic()
    told: set[str] = set()  # reward models of which it was said that some rewards are not finite
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {key: bars.add_task(names[key], total=total) for key, total in totals.items() if total}

        def advance(not_finite: Mapping[str, int] | None = None, **counts: int) -> None:
            nonlocal said
            for label in (not_finite or {}).keys() - told:
                told.add(label)
                console.say(
                    f"note: the reward model {label} gives rewards that are not finite; such responses count as not "
                    "scored, and how many they are is said at the end"
                )
            for key, count in counts.items():
                done[key] += count
                if key in tasks:
                    bars.update(tasks[key], completed=done[key])
            if not console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                parts = [f"{done[key]} of {total} {names[key]}" for key, total in totals.items() if total]
                console.say(f"{plan.config.name}: {', '.join(parts)}")

        yield advance
