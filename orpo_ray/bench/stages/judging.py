"""Verdicts by the actor that an evaluation's judges are asked through, and by one bare `LLM.generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orpo_ray.bench.stages.generation import beside_bare
from orpo_ray.bench.stages.models import random_policy
from orpo_ray.bench.stages.way import Way
from orpo_ray.config import EvaluationConfig
from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.config.evaluation_benchmark import JudgingBenchmarkConfig
from orpo_ray.data.prompts import read_prompts, readable
from orpo_ray.evaluation.judging import plan_judging
from orpo_ray.inference.generation import EngineOptions
from orpo_ray.judging.judges import LocalJudge
from orpo_ray.judging.places import Answered, places


@contextmanager
def judging(config: JudgingBenchmarkConfig, folder: Path) -> Iterator[dict[str, Way]]:
    """Which of the data's own two answers is better, as often as their prompt fits the judge."""
    model = random_policy(config.judge, config.tokenizer, folder)
    evaluation = EvaluationConfig.model_validate({
        "name": "judging", "models": {"any": str(model)}, "reward_models": {"any": "toy"}, "prompts": config.prompts,
        "judges": {"judge": {"kind": "vllm", "model": str(model), "chat_template": config.chat_template}},
        "judging": config.judging, "storage": {"path": str(folder)},
    })  # fmt: skip
    plan = plan_judging(evaluation)
    assert plan is not None
    judge = plan.judges["judge"]
    assert isinstance(judge, LocalJudge)
    prompts, _ = read_prompts(config.prompts, with_messages=False)
    answered = Answered(
        [[readable(prompt.as_found.prompt)] for prompt in prompts],
        {
            label: [[[readable(prompt.as_found.completions[side])]] for prompt in prompts]
            for side, label in enumerate(DATA_LABELS)
        },
        [None] * len(prompts),
    )
    asked = [asked for _, asked in places(config.judging, plan.prompt, answered) if asked is not None]
    requests = [judge.request(number, each) for number, each in enumerate(asked)]
    requests = [request for request in requests if judge.fits(request)]
    longest = max(len(request.ids) for request in requests) + judge.sampling.max_tokens
    options = EngineOptions(
        str(model), judge.model.generation_dtype, longest, stop_ids=judge.stop_ids, top_tokens=judge.top_tokens
    )
    with beside_bare(requests, options, judge.sampling, "verdicts") as ways:
        yield ways
