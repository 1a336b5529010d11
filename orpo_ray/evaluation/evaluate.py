"""`orpo-ray evaluate`: from a configuration to a finished evaluation folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from orpo_ray.config import EvaluationConfig, read_yaml
from orpo_ray.config.identity import other_settings
from orpo_ray.config.kinds import held_for
from orpo_ray.config.paths import expanded
from orpo_ray.errors import UserError
from orpo_ray.evaluation.answered import References, answered, read_references
from orpo_ray.evaluation.cluster import Nodes, Resources, scorers_alone, share_out
from orpo_ray.evaluation.cpu_engine import lacks_on_cpu
from orpo_ray.evaluation.embedding import embedder_identity, load_embedder
from orpo_ray.evaluation.judged import TABLE
from orpo_ray.evaluation.judging import JudgingPlan, judge, plan_judging
from orpo_ray.evaluation.leaderboards import Leaderboards, require_benchmarks
from orpo_ray.evaluation.plan import ENGINES, EvaluationPlan, make_plan
from orpo_ray.evaluation.progress import complete
from orpo_ray.evaluation.results import STATISTICS, Embed, Tables, prompts_table, results_table, winrates
from orpo_ray.evaluation.store import EvaluationFolder, content_key
from orpo_ray.evaluation.turns import furthest, next_turn
from orpo_ray.parsing import read_object
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.storage.run_folder import write_atomically, write_table
from orpo_ray.terminal import Console


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
    judging = plan_judging(config)
    plan = make_plan(config)
    references, remarks = read_references(config, plan.prompts)
    plan = furthest(replace(plan, notes=plan.notes + remarks))
    folder = plan.folder
    if plan.last and _is_finished(folder, _key(plan, judging, references)):
        console.say(f"{folder.path}: already finished")
        return folder
    require_benchmarks(config, plan.prompts)
    if judging is not None:
        judging.require_keys()
    with only_driver(folder.path, console, wait=wait):
        _evaluate(config, plan, judging, references, resources, console)
    return folder


def _key(plan: EvaluationPlan, judging: JudgingPlan | None, references: References) -> str:
    """What the results of the last turn's plan are known by."""
    config = plan.config
    answers = (
        {} if plan.judges and judging is None else {"answers": [work.judged_as for work in plan.answering.values()]}
    )
    categories = [prompt.category for prompt in plan.prompts] if config.prompts.category else []
    paths = {name: expanded(file) for name, file in config.leaderboard if file}
    files = {name: hashlib.blake2b(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}
    later = {
        "measures": config.measures, "categories": categories, "leaderboard": files,
        "fields": [dict(prompt.fields) for prompt in plan.prompts] if config.measures else [],
        "judging": judging and [judging.identity, config.judging.for_a_file(), references, TABLE],
    }  # fmt: skip
    return content_key(
        rewards=[judge.rewards.names for judge in plan.judges.values()],
        log_probs=[work.log_probs and work.log_probs.folder.name for work in plan.answering.values()],
        embedder=config.embedder and embedder_identity(config.embedder), notes=plan.notes, statistics=STATISTICS,
        **answers, **{name: value for name, value in later.items() if value},
    )  # fmt: skip


def _evaluate(
    config: EvaluationConfig,
    plan: EvaluationPlan,
    judging: JudgingPlan | None,
    references: References,
    resources: Resources | None,
    console: Console,
) -> None:
    folder = plan.folder
    held_for("evaluation", folder.config)
    if replaced := _replaced(config, folder):
        console.say(
            f"note: {folder.path} held the results of other settings ({', '.join(replaced)}); they are made anew"
        )
    folder.winrates.unlink(missing_ok=True)  # of other settings than those that config.yaml is to say
    write_atomically(folder.config, config.to_yaml())
    write_table(folder.prompts, prompts_table(plan))
    for note in plan.notes:
        console.say(f"note: {note}")
    embed, unavailable = _embedder(config)
    _work(plan, resources, console)
    while not plan.last:
        known = len(plan.notes)
        plan = next_turn(plan)
        for note in plan.notes[known:]:
            console.say(f"note: {note}")
        _work(plan, resources, console)
    said = answered(plan, references)
    judged = None if judging is None else judge(config, judging, said, folder, console, resources=resources)
    tables = Tables(plan)
    write_table(folder.results, results_table(tables))
    if judged is not None:
        write_table(folder.judgements, judged.table())
    described = judging.describe() if judging else {}
    found = winrates(tables, embed, _key(plan, judging, references), judged, described)
    found["leaderboards"] = Leaderboards(config, folder, plan.prompts, said, judged).measured()
    found["notes"] += [*(judged.notes([prompt.question_id for prompt in plan.prompts]) if judged else ()), *unavailable]
    write_atomically(folder.winrates, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _replaced(config: EvaluationConfig, folder: EvaluationFolder) -> list[str]:
    """Dotted keys in which the settings of finished results differ from those of now; of unreadable ones none."""
    if not folder.results.is_file():
        return []
    try:
        # As a configuration again: keys that came later stand at their defaults.
        held = EvaluationConfig.model_validate(read_yaml(folder.config)).for_a_file()
    except (UserError, ValidationError):
        return []
    # How many actors there are changes no number.
    return [key for key in other_settings(held, config.for_a_file()) if not key.startswith("scaling.")]


def read_winrates(folder: EvaluationFolder) -> dict[str, Any]:
    """What `winrates.json` says. Raises `UserError` where it is no JSON object."""
    return read_object(folder.winrates)


def _is_finished(folder: EvaluationFolder, key: str) -> bool:
    """Whether the results are those of `key`; damaged ones are not, and are made again."""
    try:
        found = read_winrates(folder)
    except UserError:
        return False
    tables = [folder.results, *([folder.judgements] if found.get("judges") else [])]
    return found.get("key") == key and all(table.is_file() for table in tables)


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
    for work in plan.given.values():
        work.keep(plan.blocks)
    scaling, blocks = plan.config.scaling, len(plan.blocks)
    scoring = bool(plan.judges) or any(work.log_probs is not None for work in plan.policies.values())

    def share(nodes: Nodes) -> Resources:
        given = resources
        if given is None and plan.policies:
            given = share_out(scaling, nodes, most=len(plan.policies) * blocks, scoring=scoring)
        given = given or scorers_alone(scaling, nodes, most=blocks)
        if not (given.generator_gpus or given.scorer_gpus):
            _require_cpu_engines(plan)
            if plan.config.generation.deterministic:
                console.say("note: generation.deterministic: is of GPUs, and changes nothing on CPUs")
        return given

    complete(plan, share, lambda given: _described(plan, given), console)


def _require_cpu_engines(plan: EvaluationPlan) -> None:
    """Raises `UserError` where vLLM is to compute what its CPU backend lacks: it would fail at its first step."""
    asked = []
    if plan.config.generation.engine == "vllm":
        left = [work for work in plan.policies.values() if not all(map(work.responses.has, range(len(plan.blocks))))]
        asked += [(work.model, "generation.engine=transformers, which is slower") for work in left]
    if plan.config.scoring.engine == "vllm":
        judges = [judge.model for judge in plan.judges.values()]
        asked += [(model, "scoring.engine=packed") for model in judges if model is not None]
    for model, instead in asked:
        if lack := lacks_on_cpu(model):
            raise UserError(f"{model.key}: vLLM has no {lack} on a CPU: {model.name}; set {instead}, or use GPUs")


def _described(plan: EvaluationPlan, resources: Resources) -> str:
    sampling, turns = plan.config.sampling, plan.config.prompts.turns
    turn = f", turn {plan.turn} of {turns}" if turns > 1 else ""
    return (
        f"{plan.config.name}: {len(plan.prompts)} prompts, {len(plan.answering)} models x {sampling.rounds} rounds"
        f"{turn}, {len(plan.judges)} reward models; {resources.generators} "
        f"{ENGINES[plan.config.generation.engine]} engines, {resources.scorers} scorers"
    )
