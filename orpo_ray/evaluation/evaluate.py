"""`orpo-ray evaluate`: from a configuration to a finished evaluation folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from orpo_ray.cluster.connection import connect
from orpo_ray.config import EvaluationConfig
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cluster import Resources, share_out
from orpo_ray.evaluation.embedding import embedder_identity, load_embedder
from orpo_ray.evaluation.pipeline import Pipeline, Progress
from orpo_ray.evaluation.plan import EvaluationPlan, make_plan
from orpo_ray.evaluation.results import Embed, Tables, prompts_table, results_table, winrates
from orpo_ray.evaluation.store import EvaluationFolder, content_key
from orpo_ray.terminal import Console
from orpo_ray.training.driver_lock import only_driver
from orpo_ray.training.run_folder import write_atomically, write_table

_SECONDS_BETWEEN_LINES = 10.0


def evaluate(
    config: EvaluationConfig,
    console: Console | None = None,
    *,
    resources: Resources | None = None,
    wait: bool = False,
) -> EvaluationFolder:
    """Generate, judge and compare as `config` says, or go on where an earlier try stopped; returns the folder.

    `resources`: of its actors; default: what the cluster has. Pieces that are there are not made again; a finished
    evaluation is left as it is. Raises `UserError` for what the user has to mend: models, prompts, more actors than
    the cluster has room for, a folder that another driver is at work on (`wait`: until that one has gone).
    """
    console = console or Console(stderr=True)
    plan = make_plan(config)
    folder = plan.folder
    key = content_key(
        rewards=[judge.rewards.folder.name for judge in plan.judges.values()],
        log_probs=[work.log_probs and work.log_probs.folder.name for work in plan.policies.values()],
        embedder=config.embedder and embedder_identity(config.embedder), notes=plan.notes,
    )  # fmt: skip
    if _is_finished(folder, key):
        console.say(f"{folder.path}: already finished")
        return folder
    with only_driver(folder.path, console, wait=wait):
        _evaluate(config, plan, key, resources, console)
    return folder


def _evaluate(
    config: EvaluationConfig, plan: EvaluationPlan, key: str, resources: Resources | None, console: Console
) -> None:
    folder = plan.folder
    write_atomically(folder.config, config.to_yaml())
    write_table(folder.prompts, prompts_table(plan))
    for note in plan.notes:
        console.say(f"note: {note}")
    embed, unavailable = _embedder(config)
    if not _all_there(plan):
        _work(plan, resources, console)
    tables = Tables(plan)
    write_table(folder.results, results_table(tables))
    found = winrates(tables, embed, key)
    found["notes"] += unavailable
    write_atomically(folder.winrates, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def read_winrates(folder: EvaluationFolder) -> dict[str, Any]:
    """What `winrates.json` says."""
    found: dict[str, Any] = json.loads(folder.winrates.read_text(encoding="utf-8"))
    return found


def _is_finished(folder: EvaluationFolder, key: str) -> bool:
    """Whether the results are those of `key`; damaged ones are not, and are made again."""
    try:
        return folder.results.is_file() and read_winrates(folder)["key"] == key
    except (OSError, ValueError, TypeError, LookupError):
        return False


def _all_there(plan: EvaluationPlan) -> bool:
    blocks = range(len(plan.blocks))
    pieces = [work.responses for work in plan.policies.values()]
    pieces += [judge.rewards for judge in plan.judges.values()]
    pieces += [work.log_probs for work in plan.policies.values() if work.log_probs is not None]
    return all(piece.has(block) for piece in pieces for block in blocks)


def _embedder(config: EvaluationConfig) -> tuple[Embed | None, list[str]]:
    """The sentence embedder; the default one may be absent, which is then noted. Loaded early: it may be misspelt."""
    if config.embedder is None:
        return None, []
    try:
        return load_embedder(config.embedder), []
    except UserError as error:
        if config.embedder != EvaluationConfig.model_fields["embedder"].default:
            raise UserError(f"embedder: {error}") from None
        return None, [f"No cosines of sentence embeddings: {error}"]


def _work(plan: EvaluationPlan, resources: Resources | None, console: Console) -> None:
    scaling = plan.config.scaling
    connect(plan.config.cpus)
    if resources is None:
        import ray

        cluster = ray.cluster_resources()
        cpus, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
        resources = share_out(scaling, cpus, gpus, most=len(plan.policies) * len(plan.blocks))
    console.say(_described(plan, resources))
    with _progress(plan, console) as progress:
        Pipeline(plan, resources, progress).run()


def _described(plan: EvaluationPlan, resources: Resources) -> str:
    sampling = plan.config.sampling
    return (
        f"{plan.config.name}: {len(plan.prompts)} prompts, {len(plan.policies)} models x {sampling.rounds} rounds, "
        f"{len(plan.judges)} reward models; {resources.generators} vLLM engines, {resources.scorers} scorers"
    )


@contextmanager
def _progress(plan: EvaluationPlan, console: Console) -> Iterator[Progress]:
    """Bars of responses, judged prompts and log-probs with the time left; plain lines where there is no terminal."""
    blocks = range(len(plan.blocks))
    totals = {"responses": 0, "judged": 0, "pairs": 0}
    for block in blocks:
        size = len(plan.blocks[block])
        for label, work in plan.policies.items():
            totals["responses"] += 0 if work.responses.has(block) else len(plan.requests(label, block))
            totals["pairs"] += size if work.log_probs is not None and not work.log_probs.has(block) else 0
        totals["judged"] += 0 if all(judge.rewards.has(block) for judge in plan.judges.values()) else size
    names = {"responses": "responses", "judged": "prompts judged", "pairs": "log-probs of the data's pairs"}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    done = dict.fromkeys(totals, 0)
    said = time.monotonic()
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {key: bars.add_task(names[key], total=total) for key, total in totals.items() if total}

        def advance(**counts: int) -> None:
            nonlocal said
            for key, count in counts.items():
                done[key] += count
                if key in tasks:
                    bars.update(tasks[key], completed=done[key])
            if not console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                parts = [f"{done[key]} of {total} {names[key]}" for key, total in totals.items() if total]
                console.say(f"{plan.config.name}: {', '.join(parts)}")

        yield advance
