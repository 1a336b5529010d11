"""The configuration of benchmarks of `orpo-ray evaluate`: what its stages cost beside the plain way."""

from __future__ import annotations

from typing import Literal

from orpo_ray.config.evaluation import Label, PromptsConfig, SamplingConfig, ScoringConfig
from orpo_ray.config.judges import JudgingConfig
from orpo_ray.config.paths import Place
from orpo_ray.config.section import Count, Section


class _Stages(Section):
    """Models are folders with a shape: their weights are random, since speed does not depend on them."""

    name: Label
    """What it is called: its result is `<name>.json`."""
    tokenizer: Place
    """Of policy and judge: Hub id or folder."""
    prompts: PromptsConfig
    """Pairs; `limit` says how many."""
    rounds: Count = 3
    """Of measuring; in each, every contestant has a turn."""


class GenerationBenchmarkConfig(_Stages):
    """The engine that an evaluation's pipeline feeds, against one bare `LLM.generate`; an actor and a CPU each."""

    measures: Literal["generation"]
    policy: Place
    """Folder with the shape of the model that answers."""
    sampling: SamplingConfig = SamplingConfig()


class ScoringBenchmarkConfig(_Stages):
    """The packed scorer against Hugging Face's forward over padded batches, six real responses to a prompt."""

    measures: Literal["scoring"]
    judge: Place
    """Folder with the shape of the reward model."""
    batches: tuple[Count, ...] = (24, 6)
    """Texts in a padded batch; each size is measured with the texts in order and sorted by length."""


class PipelineBenchmarkConfig(_Stages):
    """Generation and scoring at once, a CPU each, against each of them alone."""

    measures: Literal["pipeline"]
    policy: Place
    """Folder with the shape of the model that answers."""
    judge: Place
    """Folder with the shape of the reward model."""
    sampling: SamplingConfig = SamplingConfig()
    scoring: ScoringConfig = ScoringConfig()


class JudgingBenchmarkConfig(_Stages):
    """Verdicts of a local judge by the engine that it is asked through, against one bare `LLM.generate`."""

    measures: Literal["judging"]
    judge: Place
    """Folder with the shape of the model that judges."""
    chat_template: str | None = None
    """Of the judge, where its tokenizer has none."""
    judging: JudgingConfig = JudgingConfig()


EvaluationBenchmarkConfig = (
    GenerationBenchmarkConfig | ScoringBenchmarkConfig | PipelineBenchmarkConfig | JudgingBenchmarkConfig
)
