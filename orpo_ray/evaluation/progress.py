"""Work from here to its end, on the cluster, with its progress on the console."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub.constants import HF_HUB_CACHE
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from orpo_ray.cluster.connection import connect
from orpo_ray.cluster.hosts import require_on_nodes
from orpo_ray.cluster.waiting import node_places, saying_what_waits
from orpo_ray.config import EvaluationConfig, ScoreConfig
from orpo_ray.evaluation.cluster import Nodes, Resources, over_nodes
from orpo_ray.evaluation.pipeline import Pipeline, Progress, Questions
from orpo_ray.evaluation.plan import Plan
from orpo_ray.evaluation.store import Parts, Pieces
from orpo_ray.evaluation.work import Judgements, Responses
from orpo_ray.inference.models import EvaluatedModel
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
    responses = Responses(plan)
    judgements = Judgements(plan, responses)
    models = [work.model for work in plan.policies.values()]
    models += [judge.model for judge in plan.judges.values() if judge.model is not None]
    with counting(plan.config.name, _counted(plan, judgements), console) as count:
        answer(plan.config, responses, judgements, models, share, describe, reporting(count, console), console)


def reporting(count: Callable[[str, int], None], console: Console) -> Progress:
    """Takes the counts of a pipeline to `count`, and says once of a reward model that its rewards are not finite."""
    told: set[str] = set()

    def progress(not_finite: Mapping[str, int] | None = None, **counts: int) -> None:
        for label in (not_finite or {}).keys() - told:
            told.add(label)
            console.say(
                f"note: the reward model {label} gives rewards that are not finite; such responses count as not "
                "scored, and how many they are is said at the end"
            )
        for key, number in counts.items():
            count(key, number)

    return progress


def answer(
    config: EvaluationConfig | ScoreConfig,
    questions: Questions,
    judgements: Judgements | None,
    models: Iterable[EvaluatedModel],
    share: Callable[[Nodes], Resources],
    describe: Callable[[Resources], str],
    progress: Progress,
    console: Console,
) -> None:
    """Have `questions` answered on the cluster, and judged; `models`: all that are loaded. See `complete`."""
    connect(config.cpus)
    resources = share(node_places())
    require_on_nodes(_local_folders(models), resources.cpus, min(1, resources.generator_gpus))
    console.say(describe(resources))
    if resources.over_nodes and resources.generator_gpus:
        console.say(f"note: {over_nodes(resources)}")
    pipeline = Pipeline(config, questions, judgements, resources, progress)
    with saying_what_waits(pipeline.waiting, lambda line: console.say(f"{config.name}: {line}")):
        pipeline.run()


def _local_folders(models: Iterable[EvaluatedModel]) -> dict[str, str]:
    """Where actors read models, by the keys that name them, but for what the Hub's own cache holds."""
    return {each.key: str(each.folder) for each in models if not each.folder.is_relative_to(HF_HUB_CACHE)}


def _all_there(plan: Plan) -> bool:
    blocks = range(len(plan.blocks))
    pieces: list[Pieces | Parts] = [work.responses for work in plan.policies.values()]
    pieces += [judge.rewards for judge in plan.judges.values()]
    pieces += [work.log_probs for work in plan.policies.values() if work.log_probs is not None]
    return all(piece.has(block) for piece in pieces for block in blocks)


def _counted(plan: Plan, judgements: Judgements) -> dict[str, tuple[str, int]]:
    """Of what `Pipeline` counts, how it is called and how much there is to do."""
    totals = {"responses": 0, "judged": 0, "pairs": 0}
    for block in range(len(plan.blocks)):
        size = len(plan.blocks[block])
        for label, work in plan.policies.items():
            totals["responses"] += 0 if work.responses.has(block) else len(plan.requests(label, block))
            totals["pairs"] += size if work.log_probs is not None and not work.log_probs.has(block) else 0
    totals["judged"] = sum(len(plan.blocks[task.block]) for task in judgements.left)
    judged = "prompts judged, model by model" if plan.policies else "prompts judged"
    names = {"responses": "responses", "judged": judged, "pairs": "log-probs of the data's pairs"}
    return {key: (names[key], total) for key, total in totals.items() if total}


@contextmanager
def counting(
    name: str, counted: Mapping[str, tuple[str, int]], console: Console
) -> Iterator[Callable[[str, int], None]]:
    """Bars with the time left, of `counted`: by key what is counted and how much there is; plain lines, which `name`
    begins, where there is no terminal. Yields what is called with a key and how much of it was done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    done = dict.fromkeys(counted, 0)
    said = time.monotonic()
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {key: bars.add_task(what, total=total) for key, (what, total) in counted.items()}

        def count(key: str, number: int) -> None:
            nonlocal said
            if key not in done:
                return
            done[key] += number
            bars.update(tasks[key], completed=done[key])
            if not console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                parts = [f"{done[key]} of {total} {what}" for key, (what, total) in counted.items()]
                console.say(f"{name}: {', '.join(parts)}")

        yield count
