"""The configuration of an evaluation: which models answer which prompts, who judges, how to sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from orpo_ray.config.data import MAX_RECORD_CHARACTERS
from orpo_ray.config.judges import JudgeConfig, JudgingConfig
from orpo_ray.config.records import PairFormat, RecordsConfig
from orpo_ray.config.rollouts import VLLM_TEMPERATURES
from orpo_ray.config.schema import StorageConfig, TrainConfig, WinRateConfig
from orpo_ray.config.section import Count, CountOrAuto, Integer, Number, PathSection, RunName, Section

Label = RunName

DATA_LABELS = ("chosen", "rejected")
"""The data set's own responses stand beside the models' under these names."""


class AskedModel(PathSection):
    """A model that answers. Where only its path is given, the text alone stands for it."""

    path: str
    """Run folder, folder, Hub id, or LoRA adapter (which names its base)."""
    chat_template: str | None = None
    """Overrides the model's own and `prompts.chat_template`: a named template or a Jinja text."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it generates in; `auto`: as it is stored."""


class PromptsConfig(RecordsConfig):
    source: str
    """Where the prompts come from: what `data.train` takes (pairs, whose own responses are then judged too), or
    records with `prompt` (text or messages), `instruction` and `input` (Alpaca), or `turns` (MT-Bench, its first)."""
    split: str = "test"
    limit: Count | None = None
    """Read only so many records."""
    records: tuple[Annotated[Integer, Field(ge=0)], ...] | None = None
    """Read these alone, by their places in the source, from 0; a sweep names those that have ranked no trial."""
    format: Literal[PairFormat, "prompts"] = "auto"
    chat_template: str | None = None
    """Overrides every model's own: a named template or a Jinja text. Default: each model is asked as it was trained.
    One model's alone: `models.NAME.chat_template`."""
    max_record_characters: Count = MAX_RECORD_CHARACTERS
    """Of a prompt and the data set's responses to it; a record of more is a bad one."""
    on_bad_record: Literal["error", "quarantine"] = "error"

    @model_validator(mode="after")
    def _read_by_one_rule(self) -> PromptsConfig:
        if self.records is not None and self.limit is not None:
            raise ValueError("records: says which are read, and so does limit; leave one out")
        return self


class SamplingConfig(Section):
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 256
    rounds: Annotated[Integer, Field(ge=1, le=1000)] = 3
    """Responses of each model to each prompt."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    stop: tuple[str, ...] = ()
    """Texts that end a response, beside EOS."""


class GenerationConfig(Section):
    engine: Literal["vllm", "transformers"] = "vllm"
    """`transformers`: its own `generate`, slower, for models that vLLM does not compute (here); in float32 what is
    stored in float16."""


class ScoringConfig(Section):
    engine: Literal["packed", "vllm"] = "packed"
    """`packed`: the trainer's own forward, each prompt once for all of a model's responses. `vllm`: its pooling runner,
    after a check that it gives the same rewards."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What reward models compute in; `auto`: as they are stored."""
    tokens_per_microbatch: Count = 16384


class EvaluationScaling(Section):
    generators: CountOrAuto = "auto"
    """vLLM engines at work at once; `auto`: what the cluster has room for beside the scorers."""
    scorers: CountOrAuto = "auto"
    tensor_parallel: Count = 1
    """GPUs of one engine."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    gpu_memory: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that an engine on a GPU of its own takes."""
    max_failures: Annotated[Integer, Field(ge=0, le=10**6)] = 10
    """Actors that may be lost before the evaluation stops."""


class EvaluationConfig(Section):
    """An evaluation. Its folder is `storage.path/name`."""

    name: Label
    models: Annotated[dict[Label, AskedModel], Field(min_length=1)]
    """Label to run folder, folder, Hub id, or LoRA adapter (which names its base), or to a mapping of more keys."""
    prompts: PromptsConfig
    reward_models: Annotated[dict[Label, str], Field(min_length=1)]
    """Label to run folder, folder or Hub id; `toy` is the embedded world's ground truth."""
    sampling: SamplingConfig = SamplingConfig()
    generation: GenerationConfig = GenerationConfig()
    scoring: ScoringConfig = ScoringConfig()
    log_probs: bool = True
    """Of the data set's own responses under each model, where it has any."""
    judges: dict[Label, JudgeConfig] = Field(default_factory=dict)
    """Models that judge in words: local ones, or behind OpenAI-compatible servers."""
    judging: JudgingConfig = JudgingConfig()
    embedder: str | None = "all-MiniLM-L6-v2"
    """Sentence-embedding model of the diversity metrics: this name, a folder or a Hub id; null: leave them out."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for sources you trust."""
    scaling: EvaluationScaling = EvaluationScaling()
    storage: StorageConfig = StorageConfig()

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs for the evaluation at the least."""
        asked = [count for count in (self.scaling.generators, self.scaling.scorers) if isinstance(count, int)]
        return sum(asked) + 2 - len(asked)

    @model_validator(mode="after")
    def _engine_has_what_is_asked(self) -> EvaluationConfig:
        if self.generation.engine == "transformers":
            if self.scaling.tensor_parallel > 1:
                raise ValueError("scaling.tensor_parallel: the engine transformers computes on one GPU")
            halves = [label for label, model in self.models.items() if model.dtype == "float16"]
            if halves:
                raise ValueError(f"models.{halves[0]}.dtype: the engine transformers computes in float32 or bfloat16")
            return self
        (least, most), asked = VLLM_TEMPERATURES, self.sampling.temperature
        if asked and not least <= asked <= most:
            raise ValueError(
                f"sampling.temperature ({asked:g}): vLLM draws at 0 and at {least:g} to {most:g}; "
                "generation.engine=transformers at any"
            )
        return self

    @field_validator("models")
    @classmethod
    def _labels_are_free(cls, models: dict[str, AskedModel]) -> dict[str, AskedModel]:
        taken = [label for label in DATA_LABELS if label in models]
        if taken:
            raise ValueError(f"the label {taken[0]} stands for the data set's own responses; choose another")
        return models


AGAINST, JUDGE = "against", "judge"


def on_held_out(
    run: TrainConfig,
    asked: WinRateConfig,
    models: dict[str, str],
    name: str,
    folder: Path,
    seed: int,
    records: Sequence[int] | None = None,
) -> EvaluationConfig:
    """`models` and `asked.against`, answering the prompts that `run` holds out (one source as `data.eval`), for one
    judge: the first `asked.prompts`, or those of `records`. The evaluation is `name` in `folder`."""
    assert isinstance(run.data.eval, str)
    return EvaluationConfig.model_validate(
        {
            "name": name,
            "models": {**models, AGAINST: asked.against},
            "prompts": {
                "source": run.data.eval, "split": run.data.eval_split,
                "limit": asked.prompts if records is None else None, "records": records,
                "format": run.data.format, "on_bad_record": run.data.on_bad_record,
                "max_record_characters": run.data.max_record_characters,
                **{key: getattr(run.data, key) for key in RecordsConfig.model_fields},
            },
            "reward_models": {JUDGE: asked.reward_model},
            "sampling": {
                "temperature": asked.temperature, "max_tokens": asked.max_tokens, "rounds": asked.rounds, "seed": seed,
            },
            "embedder": None,
            "trust_remote_code": run.model.trust_remote_code,
            "storage": {"path": str(folder), "cache": str(run.cache_dir)},
        }
    )  # fmt: skip
