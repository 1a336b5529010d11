"""The configuration of an evaluation: which models answer which prompts, who judges, how to sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from orpo_ray.config.benchmark_files import with_benchmark
from orpo_ray.config.data import MAX_RECORD_CHARACTERS
from orpo_ray.config.judges import JudgeConfig, JudgingConfig
from orpo_ray.config.paths import Place
from orpo_ray.config.records import PairFormat, RecordsConfig
from orpo_ray.config.rollouts import VLLM_TEMPERATURES
from orpo_ray.config.schema import StorageConfig, TrainConfig, WinRateConfig
from orpo_ray.config.section import (
    ANSWERED_BY,
    Count,
    CountOrAuto,
    Integer,
    Number,
    PathSection,
    RunName,
    Section,
)

Label = RunName

MOST_TURNS = 16
DATA_LABELS = ("chosen", "rejected")
"""The data set's own responses stand beside the models' under these names."""


class AskedModel(PathSection):
    """A model that answers. Where only its path is given, the text alone stands for it."""

    path: Place
    """Run folder, folder, Hub id, or LoRA adapter (which names its base)."""
    chat_template: str | None = None
    """Overrides the model's own and `prompts.chat_template`: a named template or a Jinja text."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it generates in; `auto`: as it is stored."""


class OutputsConfig(Section):
    """Answers that were made elsewhere: a model that is not asked. Where only its file is given and that is JSON, the
    text alone stands for it."""

    outputs: Place
    """File, URL or Hub id of records with a prompt and a response, or with several: AlpacaEval's outputs, MT-Bench's
    answers, IFEval's responses (docs/evaluation.md)."""
    split: str = "test"
    """Which split is read, where there are any."""

    @model_validator(mode="before")
    @classmethod
    def _from_its_file(cls, value: Any) -> Any:
        if isinstance(value, dict) and "path" in value:
            raise ValueError("has a path and outputs; a model answers, or its answers are there: leave one out")
        return {"outputs": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_short_as_given(self, handler: SerializerFunctionWrapHandler) -> Any:
        if self != type(self)(outputs=self.outputs):
            return handler(self)
        return self.outputs if names_outputs(self.outputs) else {"outputs": self.outputs}


def names_outputs(value: Any) -> bool:
    """Whether a model's text, mapping or section is of answers that are there."""
    if isinstance(value, str):
        return value.lower().endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz"))
    return isinstance(value, OutputsConfig) or (isinstance(value, dict) and "outputs" in value)


AnsweringModel = Annotated[
    Annotated[OutputsConfig, Tag(ANSWERED_BY[True])] | Annotated[AskedModel, Tag(ANSWERED_BY[False])],
    Discriminator(lambda value: ANSWERED_BY[names_outputs(value)]),
]


class PromptsConfig(RecordsConfig):
    """What is asked."""

    source: Place
    """Where the prompts come from: what `data.train` takes (pairs, whose own responses are then judged too), or
    records with `prompt` (text or messages), `instruction` and `input` (Alpaca), or `turns` (MT-Bench)."""
    split: str = "test"
    """Which split is read, where there are any."""
    limit: Count | None = None
    """Read only so many records."""
    records: tuple[Annotated[Integer, Field(ge=0)], ...] | None = None
    """Read these alone, by their places in the source, from 0; a sweep names those that have ranked no trial."""
    turns: Annotated[Integer, Field(ge=1, le=MOST_TURNS)] = 1
    """Ask so many of a record's `turns`, each behind the model's own answers to those before it."""
    category: str | None = None
    """The column that says which category a prompt is of, for `sampling.by_category` and results."""
    format: Literal[PairFormat, "prompts"] = "auto"
    """The shape of a record (docs/data.md); `auto` recognises it by content."""
    chat_template: str | None = None
    """Overrides every model's own: a named template or a Jinja text. Default: each model is asked as it was trained.
    One model's alone: `models.NAME.chat_template`."""
    max_record_characters: Count = MAX_RECORD_CHARACTERS
    """Of a prompt and the data set's responses to it; a record of more is a bad one."""
    on_bad_record: Literal["error", "quarantine"] = "error"
    """`quarantine`: set unreadable records aside in `quarantine.jsonl`, with the reason, and go on."""

    @model_validator(mode="after")
    def _read_by_one_rule(self) -> PromptsConfig:
        if self.records is not None and self.limit is not None:
            raise ValueError("records: says which are read, and so does limit; leave one out")
        return self


Temperature = Annotated[Number, Field(ge=0, le=100)]


class CategorySampling(Section):
    """What is drawn otherwise for the prompts of a category; null: as for all."""

    temperature: Temperature | None = None
    """As `sampling.temperature`."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """As `sampling.top_p`."""
    max_tokens: Count | None = None
    """As `sampling.max_tokens`."""


class SamplingConfig(Section):
    """How answers are drawn."""

    temperature: Temperature = 1.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens alone that have this probability together."""
    max_tokens: Count = 256
    """Of a response."""
    rounds: Annotated[Integer, Field(ge=1, le=1000)] = 3
    """Responses of each model to each prompt."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Of what is drawn, with the prompt and the round."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, beside EOS."""
    by_category: dict[str, CategorySampling] = Field(default_factory=dict)
    """Category (see `prompts.category`) to its own settings."""

    def of(self, category: str) -> SamplingConfig:
        """How the prompts of a category are answered."""
        own = self.by_category.get(category)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True) | {"by_category": {}})

    @property
    def temperatures(self) -> list[tuple[str, float]]:
        """Each with its key."""
        own = {f"by_category.{name}.temperature": each.temperature for name, each in self.by_category.items()}
        return [("temperature", self.temperature), *((key, each) for key, each in own.items() if each is not None)]

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """It is part of what responses are known by: without categories as before there were any."""
        found: dict[str, Any] = handler(self)
        return found if self.by_category else {key: value for key, value in found.items() if key != "by_category"}


class AnswersConfig(Section):
    """What is done with answers before anything is judged."""

    strip_thinking: bool = False
    """Cut what stands between `<think>` and `</think>` before anything is judged, compared or asked further."""


Measure = Literal["alpaca-eval-1", "alpaca-eval-2", "mt-bench", "ifeval"]


class LeaderboardConfig(Section):
    """Files beside those numbers that a benchmark's own leaderboard has."""

    difficulty: Place | None = None
    """Of AlpacaEval's instructions: without it there is no length-controlled win-rate as AlpacaEval 2 defines it."""
    published: Place | None = None
    """A table of published numbers, among which one's own are shown."""


class GenerationConfig(Section):
    """What draws the answers."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`transformers`: its own `generate`, slower, for models that vLLM does not compute (here); in float32 what is
    stored in float16."""
    deterministic: bool = False
    """On GPUs (compute capability 9.0 and above): vLLM's batch-invariant kernels, by which a response is the same
    whatever is computed beside it. Slower."""


class ScoringConfig(Section):
    """What computes rewards and log-probs."""

    engine: Literal["packed", "vllm"] = "packed"
    """`packed`: the trainer's own forward, each prompt once for all of a model's responses. `vllm`: its pooling runner,
    after a check that it gives the same rewards."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What reward models compute in; `auto`: as they are stored."""
    tokens_per_microbatch: Count = 16384
    """Packed tokens that one scorer computes at once; changes memory and speed."""


class EvaluationScaling(Section):
    """On how much an evaluation is spread."""

    generators: CountOrAuto = "auto"
    """vLLM engines at work at once; `auto`: what the cluster has room for beside the scorers."""
    scorers: CountOrAuto = "auto"
    """Actors at work at once that compute rewards and log-probs; `auto`: what the cluster has room for."""
    tensor_parallel: Count = 1
    """GPUs that each layer of a model is split over."""
    pipeline_parallel: Count = 1
    """Parts that the layers are cut into, each on `tensor_parallel` GPUs: an engine has the product of both, of one
    node or, where none has so many, of several."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """`auto`: GPUs where the cluster has any."""
    gpu_memory: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that engine and scorer take."""
    scorer_memory: Annotated[Number, Field(gt=0, lt=1)] = 0.25
    """How much of it is a scorer's that shares a GPU with an engine."""
    max_failures: Annotated[Integer, Field(ge=0, le=10**6)] = 10
    """Actors that may be lost before the evaluation stops."""


class EvaluationConfig(Section):
    """An evaluation. Its folder is `storage.path/name`."""

    name: Label
    """What it is called: its folder is `storage.path/name`."""
    benchmark: Place | None = None
    """One that comes along (alpaca-eval-1, alpaca-eval-2, mt-bench, ifeval), or a file: its keys are defaults here."""
    models: Annotated[dict[Label, AnsweringModel], Field(min_length=1)]
    """Label to run folder, folder, Hub id, or LoRA adapter (which names its base), or to a mapping of more keys; or to
    a JSON file of answers that were made elsewhere."""
    prompts: PromptsConfig
    reward_models: dict[Label, Place] = Field(default_factory=dict)
    """Label to run folder, folder or Hub id; `toy` is the embedded world's ground truth."""
    measures: tuple[Measure, ...] = ()
    """Benchmarks whose own numbers are made, too."""
    leaderboard: LeaderboardConfig = LeaderboardConfig()
    sampling: SamplingConfig = SamplingConfig()
    answers: AnswersConfig = AnswersConfig()
    generation: GenerationConfig = GenerationConfig()
    scoring: ScoringConfig = ScoringConfig()
    log_probs: bool = True
    """Of the data set's own responses under each model, where it has any."""
    judges: dict[Label, JudgeConfig] = Field(default_factory=dict)
    """Models that judge in words: local ones, or behind OpenAI-compatible servers."""
    judging: JudgingConfig = JudgingConfig()
    embedder: Place | None = "all-MiniLM-L6-v2"
    """Sentence-embedding model of the diversity metrics: this name, a folder or a Hub id; null: leave them out."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for sources you trust."""
    scaling: EvaluationScaling = EvaluationScaling()
    storage: StorageConfig = StorageConfig()

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs for the evaluation at the least."""
        actors = [self.scaling.scorers, *([self.scaling.generators] if self.asked else [])]
        return sum(count if isinstance(count, int) else 1 for count in actors)

    @property
    def asked(self) -> dict[str, AskedModel]:
        """The models that answer here."""
        return {label: model for label, model in self.models.items() if isinstance(model, AskedModel)}

    @classmethod
    def completed(cls, mapping: dict[str, Any], origin: str) -> dict[str, Any]:
        return with_benchmark(mapping, origin)

    @model_validator(mode="after")
    def _engine_has_what_is_asked(self) -> EvaluationConfig:
        if self.generation.engine == "transformers":
            for key in ("tensor_parallel", "pipeline_parallel"):
                if getattr(self.scaling, key) > 1:
                    raise ValueError(f"scaling.{key}: the engine transformers computes on one GPU")
            if self.generation.deterministic:
                raise ValueError("generation.deterministic: is of vLLM's kernels, and generation.engine=transformers")
            halves = [label for label, model in self.asked.items() if model.dtype == "float16"]
            if halves:
                raise ValueError(f"models.{halves[0]}.dtype: the engine transformers computes in float32 or bfloat16")
            return self
        least, most = VLLM_TEMPERATURES
        for key, asked in self.sampling.temperatures:
            if asked and not least <= asked <= most:
                raise ValueError(
                    f"sampling.{key} ({asked:g}): vLLM draws at 0 and at {least:g} to {most:g}; "
                    "generation.engine=transformers at any"
                )
        return self

    @model_validator(mode="after")
    def _something_is_measured(self) -> EvaluationConfig:
        if not (self.reward_models or self.judges or self.measures):
            raise ValueError("reward_models: names none, and neither judges nor measures say how answers are measured")
        return self

    @model_validator(mode="after")
    def _measures_have_verdicts(self) -> EvaluationConfig:
        for measure in self.measures:
            if measure == "ifeval":
                continue
            if not self.judges:
                raise ValueError(f"measures: {measure} is made of what a judge says; name one under judges")
            wanted = "rates" if measure == "mt-bench" else "pairs"
            if self.judging.compares != wanted:
                raise ValueError(f"measures: {measure} needs judging.compares={wanted}")
            if wanted == "pairs" and self.judging.against is None:
                raise ValueError(f"measures: {measure} needs judging.against, the model that it compares with")
        return self

    @model_validator(mode="after")
    def _judges_have_names_of_their_own(self) -> EvaluationConfig:
        twice = [label for label in self.judges if label in self.reward_models]
        if twice:
            raise ValueError(f"judges.{twice[0]}: a reward model has this name; choose another")
        measured = self.reward_models or "ifeval" in self.measures  # whatever judges say
        if self.judges and not measured and self.judging.compares == "pairs" and len(self.models) < 2:
            raise ValueError(f"models: {next(iter(self.models))} is alone, and judging.compares=pairs needs two")
        if self.judging.against is not None and self.judges and self.judging.against not in self.models:
            raise ValueError(f"judging.against: no model is called {self.judging.against}")
        return self

    @model_validator(mode="after")
    def _categories_are_known(self) -> EvaluationConfig:
        if self.sampling.by_category and self.prompts.category is None:
            raise ValueError("sampling.by_category: needs prompts.category, the column that says what a prompt is of")
        return self

    @field_validator("models")
    @classmethod
    def _labels_are_free(cls, models: dict[str, AnsweringModel]) -> dict[str, AnsweringModel]:
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
