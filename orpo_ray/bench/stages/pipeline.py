"""Generation and scoring at once, as `orpo-ray evaluate` runs them, and each of them alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orpo_ray.bench.stages.models import plan_evaluation, random_judge, random_policy
from orpo_ray.bench.stages.way import Way
from orpo_ray.cluster.connection import connect
from orpo_ray.config.evaluation_benchmark import PipelineBenchmarkConfig
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.evaluation.pipeline import Pipeline
from orpo_ray.evaluation.plan import EvaluationPlan
from orpo_ray.evaluation.work import Judgements, Responses

_A_CPU_EACH = Resources(generators=1, scorers=1, cpus=1, generator_gpus=0, scorer_gpus=0, gpu_memory=None)


@contextmanager
def pipeline(config: PipelineBenchmarkConfig, folder: Path) -> Iterator[dict[str, Way]]:
    """Each turn starts its actors anew; scoring alone takes the responses of the turn before it."""
    policy = random_policy(config.policy, config.tokenizer, folder)
    judge = random_judge(config.judge, config.tokenizer, folder)
    whole, apart = (
        plan_evaluation(name, policy, judge, config.prompts, config.sampling, config.scoring, folder)
        for name in ("at-once", "apart")
    )
    generation = replace(
        apart, judges={}, policies={label: replace(work, log_probs=None) for label, work in apart.policies.items()}
    )
    connect(cpus=2)
    _work(replace(whole, blocks=whole.blocks[:1]))  # libraries come from the disk the first time

    def anew(plan: EvaluationPlan) -> Callable[[], int]:
        def run() -> int:
            shutil.rmtree(plan.folder.path, ignore_errors=True)
            return _work(plan)

        return run

    yield {
        "at once": Way(anew(whole), "responses"),
        "generation": Way(anew(generation), "responses"),
        "scoring": Way(lambda: _work(apart), "responses"),
    }


def _work(plan: EvaluationPlan) -> int:
    responses = Responses(plan)
    Pipeline(plan.config, responses, Judgements(plan, responses), _A_CPU_EACH, lambda **_: None).run()
    return len(plan.prompts) * plan.config.sampling.rounds
