"""The configuration of `orpo-ray score`: which reward models read which responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orpo_ray.config.benchmark_files import with_benchmark
from orpo_ray.config.evaluation import Label, PromptsConfig, ScoringConfig
from orpo_ray.config.paths import Place
from orpo_ray.config.schema import StorageConfig
from orpo_ray.config.section import CountOrAuto, Integer, Number, Section


class ScorersScaling(Section):
    """On how much scoring is spread."""

    scorers: CountOrAuto = "auto"
    """Scorers at work at once; `auto`: one on every GPU, or what the CPUs have room for."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """`auto`: GPUs where the cluster has any."""
    gpu_memory: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that vLLM takes of it in a scorer, with the check of its rewards (`scoring.engine`)."""
    max_failures: Annotated[Integer, Field(ge=0, le=10**6)] = 10
    """Scorers that may be lost before the work stops."""


class ScoreConfig(Section):
    """Rewards of responses that are there. The folder is `storage.path/name`."""

    name: Label
    """What it is called: its folder is `storage.path/name`."""
    benchmark: Place | None = None
    """One that comes along (reward-bench), or a file: its keys are defaults here."""
    reward_models: Annotated[dict[Label, Place], Field(min_length=1)]
    """Label to run folder, folder or Hub id; `toy` is the embedded world's ground truth."""
    prompts: PromptsConfig
    """Pairs, or records with `prompt` and `responses`, `response` or `output`."""
    subset: str = "subset"
    """The field of a record by which accuracies are told apart, where it has one."""
    scoring: ScoringConfig = ScoringConfig()
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for sources you trust."""
    scaling: ScorersScaling = ScorersScaling()
    storage: StorageConfig = StorageConfig()

    @classmethod
    def completed(cls, mapping: dict[str, Any], origin: str) -> dict[str, Any]:
        return with_benchmark(mapping, origin)

    @field_validator("prompts")
    @classmethod
    def _nothing_is_asked(cls, prompts: PromptsConfig) -> PromptsConfig:
        if prompts.turns > 1:
            raise ValueError("turns: nothing is asked here; a record's responses are scored as they are")
        if prompts.category is not None:
            raise ValueError("category: is of an evaluation; name the column of subsets under subset")
        return prompts

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs at the least."""
        return self.scaling.scorers if isinstance(self.scaling.scorers, int) else 1
